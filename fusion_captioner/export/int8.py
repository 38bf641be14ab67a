"""
The parts of an export in int8: a quarter of the bytes.

The image part multiplies int8 by int8: the user's images give the range of every activation beforehand (static
quantisation, Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 2). The decoder step has few activations and
many weights: its weights are int8, and its activations have scales from what the captioner says of these images (see
`quantize_decoder_part`), or stay float32 (see `compress_weights`). What is no product with weights (normalisation,
attention's softmax, residual sums) stays float32, and so do the first convolutions (see `first_convolutions`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fusion_captioner.export.equalizing import equalize_channels
from fusion_captioner.export.int8_products import quantize_products
from fusion_captioner.export.int8_tables import matrices, quantize_tables
from fusion_captioner.export.rounding import largest_scales, round_weights, watched, weight_scales
from fusion_captioner.image_loading import images_to_pixel_values
from fusion_captioner.inference.runtimes import Part, import_runtime

# More images widen the ranges no further, and only cost time.
MAX_CALIBRATION_IMAGES = 300
# Images that say how far channels reach, and how weights are rounded.
MAX_EQUALIZING_IMAGES, MAX_ROUNDING_IMAGES = 100, 64
# Products with weights; each must end in int8.
PRODUCTS = ("Conv", "Gemm", "MatMul")
# Limits of a product's output, which int8 has without them: quantised before them, the output would have steps too
# wide.
_LIMITS = ("Clip", "Relu")
# Rounded, the convolutions next to the pixels change the image part's results more than all others, and they have
# little to compute: so many of them stay float32 as need this share of all multiplications at most.
_FLOAT_SHARE = 0.04
# What hands a weight on as it is, in another shape.
_SHAPES = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def evenly_spaced(images: Sequence[str], most: int) -> list[str]:
    """All images, or of more than `most` so many."""
    return [images[place] for place in np.linspace(0, len(images) - 1, min(len(images), most)).astype(int)]


class CalibrationImages:
    """
    What ONNX Runtime's quantiser reads: the pixels of one image at a time.

    Args:
        images: names of images; of many, so many that are evenly spaced are taken.
        image_settings: those of the image processor.
        input_name: what the image part calls its pixels.
        most: the largest number of images.
    """

    def __init__(self, images: Sequence[str], image_settings: Mapping[str, Any], input_name: str, most: int) -> None:
        self.images = evenly_spaced(images, most)
        self.image_settings = image_settings
        self.input_name = input_name
        self.position = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.get_next, None)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image's, None at the end."""
        images = self.images[self.position : self.position + 1]
        self.position += 1
        return {self.input_name: images_to_pixel_values(images, self.image_settings)} if images else None


def quantize_image_part(source: Path, target: Path, images: Sequence[str], image_settings: Mapping[str, Any]) -> None:
    """
    Static quantisation of an ONNX file: uint8 activations, whose range is a moving average of images' ranges; int8
    weights with a scale for each output channel, rounded by [`~fusion_captioner.export.rounding.round_weights`].
    Channels are equalised before (see [`~fusion_captioner.export.equalizing.equalize_channels`]). The
    [`first_convolutions`] and sums from block to block (see [`keep_sums`]) stay float32.

    Args:
        source, target: files to read and to write.
        images: names of images that say how large activations get, and how weights are rounded.
        image_settings: those of the image processor.

    Raises:
        ValueError: an image cannot be read, or a layer has no int8 form.
        ImportError: `onnx` or `onnxruntime` is not installed.
    """
    quantization, onnx = import_runtime("onnxruntime.quantization", "onnx"), import_runtime("onnx", "onnx")
    _prepare(source)
    pixels = onnx.load(source).graph.input[0].name
    equalize_channels(source, CalibrationImages(images, image_settings, pixels, MAX_EQUALIZING_IMAGES))
    model = onnx.load(source)
    some = CalibrationImages(images, image_settings, pixels, MAX_ROUNDING_IMAGES)
    exact = first_convolutions(model, next(iter(CalibrationImages(images, image_settings, pixels, 1))))
    scales = round_weights(source, some, exact)
    reader = CalibrationImages(images, image_settings, pixels, MAX_CALIBRATION_IMAGES)
    quantization.quantize_static(
        source,
        target,
        reader,
        op_types_to_quantize=[*PRODUCTS, *_LIMITS],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=exact,
        extra_options={
            "TensorQuantOverrides": scales,
            # the extremes of all images would make steps wider for the sake of a few values
            "CalibMovingAverage": True,
            "CalibMovingAverageConstant": 2 / (len(reader.images) + 1),
            # what follows them computes in float32: normalisation, attention's softmax, the decoder
            "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
        },
    )
    model = onnx.load(target)
    keep_sums(model)
    quantize_tables(model)  # the words of concepts
    onnx.save(model, target)
    _check_int8(target, exact)


def keep_sums(model: Any) -> None:
    """
    Sums that are added to further ones stay float32 there; only products read their bytes. Else what is added up from
    block to block would be rounded at each.

    Args:
        model: a quantised ONNX model, changed in place.
    """
    makers = {name: node for node in model.graph.node for name in node.output}

    def maker(name: str, operator: str) -> Any:
        node = makers.get(name)
        return node if node is not None and node.op_type == operator else None

    for node in model.graph.node:
        for place, name in enumerate(node.input if node.op_type == "Add" else ()):
            read = maker(name, "DequantizeLinear")
            written = read and maker(read.input[0], "QuantizeLinear")
            if written and maker(written.input[0], "Add"):
                node.input[place] = written.input[0]


def first_convolutions(model: Any, image: Mapping[str, np.ndarray]) -> list[str]:
    """
    Names of the first convolutions of an ONNX model, as many as may stay float32, and of the limits behind them.

    Args:
        model: with constant weights.
        image: its inputs.
    """
    graph = model.graph
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in PRODUCTS and node.input[1] in shapes]
    results = watched(model, {node.output[0] for node in products})(image)
    work = {}  # multiplications
    for node in products:
        weights, result = shapes[node.input[1]], results[node.output[0]]
        work[node.name] = prod(weights) * result.size // result.shape[1 if node.op_type == "Conv" else -1]
    rest = _FLOAT_SHARE * sum(work.values())
    first, outputs = [], set()
    for node in products:
        rest -= work[node.name]
        if node.op_type != "Conv" or rest < 0:
            break
        first.append(node.name)
        outputs.update(node.output)
    return first + [node.name for node in graph.node if node.op_type in _LIMITS and node.input[0] in outputs]


def quantize_decoder_part(source: Path, target: Path, run: Callable[[Part], None]) -> None:
    """
    Weights of an ONNX file become int8 with a scale for each output; see
    [`~fusion_captioner.export.int8_products.quantize_products`] for what they are multiplied by.

    Args:
        source, target: files to read and to write.
        run: calls the part that it is given, on inputs like those to come.

    Raises:
        ValueError: a layer has no int8 form.
        ImportError: `onnx` or `onnxruntime` is not installed.
    """
    import_runtime("onnxruntime", "onnx")
    onnx = import_runtime("onnx", "onnx")
    from onnxruntime.quantization.onnx_model import ONNXModel

    _prepare(source)
    with_gemms = ONNXModel(onnx.load(source))
    with_gemms.replace_gemm_with_matmul()
    model = with_gemms.model
    products = matrices(model, ["MatMul"], 1)
    quantize_products(model, products, run)
    quantize_tables(model, products, weight_scales)  # as products, so that both can share rows
    onnx.save(model, target)
    _check_int8(target)


def compress_weights(model: Any) -> None:
    """
    Weights of an OpenVINO model become int8 with a scale for each output; OpenVINO multiplies float32 activations by
    them, or int8 ones where the processor has instructions for it.

    Args:
        model: an `openvino.Model`, changed in place.

    Raises:
        ValueError: it has products with weights that are no matrices.
    """
    openvino = import_runtime("openvino", "openvino")
    for constant in [node for node in model.get_ops() if node.get_type_name() == "Constant"]:
        users = constant.output(0).get_target_inputs()
        products = [user for user in users if user.get_node().get_type_name() == "MatMul" and user.get_index() == 1]
        rows_of = [user for user in users if user.get_node().get_type_name() == "Gather" and user.get_index() == 0]
        weights = constant.data
        if weights.dtype != np.float32 or not (products or (rows_of and weights.ndim == 2)):
            continue
        if weights.ndim != 2:
            raise ValueError(f"the weights {constant.get_friendly_name()!r} {weights.shape} have no int8 form here.")
        in_rows = [user.get_node().get_attributes()["transpose_b"] for user in products] or [True]
        if len(set(in_rows)) > 1:
            raise ValueError(f"the weights {constant.get_friendly_name()!r} are multiplied from both sides.")
        scale = largest_scales(weights)[:, None] if in_rows[0] else largest_scales(weights.T)
        opset = openvino.opset13
        rounded = opset.constant(np.round(weights / scale).astype(np.int8))
        product = opset.multiply(opset.convert(rounded, "f32"), opset.constant(scale.astype(np.float32)))
        for user in (*products, *rows_of):
            user.replace_source_output(product.output(0))
    left = [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() in ("MatMul", "Convolution", "GroupConvolution", "LSTMCell", "LSTMSequence", "GRUCell")
        and any(_is_float_weight(node.input_value(index).get_node()) for index in range(1, node.get_input_size()))
    ]
    if left:
        raise ValueError(_no_int8(left))


def _is_float_weight(node: Any) -> bool:
    while node.get_type_name() in ("Transpose", "Reshape", "Unsqueeze", "Squeeze"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and node.data.dtype == np.float32 and node.data.ndim > 1


def _prepare(path: Path) -> None:
    """Fold what is constant, as the transposed weights of the output layer, which would stay float32 otherwise."""
    import_runtime("onnxruntime", "onnx")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(path, path, skip_symbolic_shape=True)


def _check_int8(path: Path, exact: Collection[str] = ()) -> None:
    """Raise where a product has float32 weights, but for those that shall have them: what says int8 is int8."""
    onnx = import_runtime("onnx", "onnx")
    graph = onnx.load(path).graph
    floats = {
        weight.name
        for weight in graph.initializer
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) > 1
    }
    left = []
    for node in graph.node:
        if node.op_type in _SHAPES and node.input[0] in floats:
            floats.update(node.output)
        elif node.op_type in (*PRODUCTS, "ConvTranspose", "LSTM", "GRU", "Einsum") and floats & set(node.input):
            left.append(node.name)
    if left := [name for name in left if name not in exact]:
        raise ValueError(_no_int8(left))


def _no_int8(layers: list[str]) -> str:
    return (
        f"{len(layers)} layer{'s' if len(layers) > 1 else ''} (first: {layers[0]!r}) would stay float32, since the "
        "quantiser has no int8 form of it; export without --int8."
    )

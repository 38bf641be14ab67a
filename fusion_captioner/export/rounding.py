"""
Rounding of weights for int8: input by input, and what rounding one changes of a layer's output, the weights after it
make up for as far as they can (GPTQ, Frantar et al. 2022, https://arxiv.org/abs/2210.17323, section 3). How far they
can is measured on images: a pixel is much like its neighbours, so that errors of a convolution's weights nearly
cancel.

Processors without VNNI multiply the bytes of two neighbouring inputs by their weights, and add both products in 16
bits: 255 * 128 fits, 255 * 129 does not. So weights have 8 bits, and two neighbours add up to 128 at most. Where a
kernel covers several channels, the processor decides which inputs are neighbours: no weight is larger than 64 there.

G: groups, O: outputs, K: inputs of a layer
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fusion_captioner.inference.runtimes import import_runtime

# Places of an image whose inputs are looked at in every layer.
PLACES = 256
# The largest int8 weight, the largest sum of two neighbours, and the largest weight where any two may be neighbours.
LARGEST_WEIGHT, LARGEST_PAIR, LARGEST_IN_DENSE_KERNEL = 127, 128, 64
# Added to the squares of the inputs, as a share of their mean, so that inputs that never vary have an inverse.
_DAMPING = 0.01
# Inputs whose changes reach all the later weights at once.
_BLOCK = 128


class Product:
    """
    A layer with constant weights, as a product of matrices.

    Args:
        node: an ONNX `Conv`, `Gemm` or `MatMul`.
        shape: that of its weights.
    """

    def __init__(self, node: Any, shape: tuple[int, ...]) -> None:
        attribute_value = import_runtime("onnx", "onnx").helper.get_attribute_value
        given = {attribute.name: attribute_value(attribute) for attribute in node.attribute}
        self.input_name, self.weight_name = node.input[:2]
        self.shape = shape
        self.is_convolution = node.op_type == "Conv"
        self.axis = 0 if self.is_convolution or given.get("transB") else 1
        self.groups = given.get("group", 1)
        kernel = shape[2:]
        self.largest = (
            LARGEST_IN_DENSE_KERNEL if self.is_convolution and shape[1] > 1 and max(kernel) > 1 else LARGEST_WEIGHT
        )
        pads = given.get("pads", [0] * 2 * len(kernel))
        self.padding = [(0, 0), (0, 0), *zip(pads[: len(kernel)], pads[len(kernel) :])]
        dilations = given.get("dilations", [1] * len(kernel))
        self.window = [(size - 1) * step + 1 for size, step in zip(kernel, dilations)]
        self.steps = tuple(slice(None, None, step) for step in (*given.get("strides", [1] * len(kernel)), *dilations))

    def matrices(self, weights: np.ndarray) -> np.ndarray:
        """`(G, O, K)` of what has the weights' shape."""
        rows = weights.T if self.axis else weights
        return rows.reshape(self.groups, len(rows) // self.groups, -1)

    def weights(self, matrices: np.ndarray) -> np.ndarray:
        """What has the weights' shape of `(G, O, K)`."""
        rows = matrices.reshape(self.shape[self.axis], -1)
        return np.ascontiguousarray(rows.T) if self.axis else rows.reshape(self.shape)

    def inputs(self, tensor: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """`(G, places, K)` of the layer's input: what its weights are multiplied by at some of an image's places."""
        if not self.is_convolution:
            rows = tensor.reshape(1, -1, tensor.shape[-1])
            return rows[:, random.permutation(rows.shape[1])[:PLACES]]
        dimensions = range(2, tensor.ndim)
        windows = sliding_window_view(np.pad(tensor, self.padding), self.window, axis=tuple(dimensions))[0]
        windows = windows[(slice(None), *self.steps)]
        shape = windows.shape[1 : 1 + len(self.window)]
        places = np.unravel_index(random.permutation(int(np.prod(shape)))[:PLACES], shape)
        patches = windows[(slice(None), *places)]
        channels, count = patches.shape[:2]
        groups = patches.reshape(self.groups, channels // self.groups, count, -1).swapaxes(1, 2)
        return groups.reshape(self.groups, count, -1)


def round_weights(
    path: Path, images: Iterable[Mapping[str, np.ndarray]], exact: Collection[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """
    Weights of an ONNX file become multiples of a scale for each output channel, where images make them.

    Args:
        path: of the file, which is changed.
        images: inputs of the model, an image each.
        exact: names of layers whose weights stay what they are.

    Returns:
        Name of weights → scale and zero point of each output channel, as ONNX Runtime's quantiser takes them.
    """
    onnx = import_runtime("onnx", "onnx")
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [
        Product(node, tuple(constants[node.input[1]].dims))
        for node in model.graph.node
        if node.name not in exact
        and (node.op_type == "Conv" or (node.op_type in ("Gemm", "MatMul") and node.input[1] in constants))
    ]
    squares = _squares_of_inputs(model, products, images)
    scales = {}
    for product in products:
        weights = constants[product.weight_name]
        matrices = product.matrices(onnx.numpy_helper.to_array(weights))
        scale = weight_scales(matrices, product.largest)
        rounded = round_matrices(matrices, squares[product.weight_name], scale, product.largest)
        weights.CopyFrom(onnx.numpy_helper.from_array(product.weights(rounded).astype(np.float32), weights.name))
        scales[product.weight_name] = [
            {"axis": product.axis, "scale": np.float32(value), "zero_point": 0} for value in scale.flatten()
        ]
    onnx.save(model, path)
    return scales


def watched(model: Any, names: Collection[str]) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """A function that runs an ONNX model: from its inputs to these and the tensors of such names, by name."""
    onnx, runtime = import_runtime("onnx", "onnx"), import_runtime("onnxruntime", "onnx")
    inner = sorted(set(names) - {tensor.name for tensor in model.graph.input})
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {tensor.name for tensor in copy.graph.output}
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner if name not in known)
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns of what the exporter has left over
    session = runtime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda inputs: dict(zip(inner, session.run(inner, dict(inputs)))) | dict(inputs)


def _squares_of_inputs(
    model: Any, products: Iterable[Product], images: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Name of weights → `(G, K, K)`, the sum of the products of each two inputs of the layer."""
    watch = watched(model, {product.input_name for product in products})
    random = np.random.default_rng(0)
    squares: dict[str, np.ndarray] = {}
    for image in images:
        tensors = watch(image)
        for product in products:
            inputs = product.inputs(tensors[product.input_name], random)
            product_of_two = inputs.swapaxes(1, 2) @ inputs
            squares[product.weight_name] = squares.get(product.weight_name, 0) + product_of_two
    return squares


def largest_scales(rows: np.ndarray, largest: int = LARGEST_WEIGHT) -> np.ndarray:
    """The scales `(..., O)` by which the largest of rows `(..., O, K)` become `largest`; 1 for zeros."""
    scale = np.abs(rows).max(axis=-1) / rows.dtype.type(largest)
    return np.where(scale == 0, rows.dtype.type(1), scale)


def weight_scales(matrices: np.ndarray, largest: int = LARGEST_WEIGHT) -> np.ndarray:
    """The smallest scales `(..., O)` with which weights `(..., O, K)` and the sums of neighbours are within limits."""
    scale = largest_scales(matrices, largest)
    if 2 * largest <= LARGEST_PAIR:
        return scale
    pairs = np.abs(matrices[..., 1:] + matrices[..., :-1]).max(axis=-1, initial=0)
    # rounded to the nearest, two neighbours may add up to one more
    return np.maximum(scale, pairs / matrices.dtype.type(LARGEST_PAIR - 1))


def round_matrices(
    matrices: np.ndarray, squares: np.ndarray, scale: np.ndarray, largest: int = LARGEST_WEIGHT
) -> np.ndarray:
    """
    Args:
        matrices (`(G, O, K)`): weights.
        squares (`(G, K, K)`): sums of the products of each two inputs.
        scale (`(G, O)`): of each output.
        largest: the largest multiple of it.

    Returns:
        `(G, O, K)`, multiples of the scale, of which no sum of neighbours is larger than `LARGEST_PAIR`.
    """
    left = matrices.astype(np.float64)
    rounded = np.zeros_like(left)
    squares = squares.astype(np.float64)
    size = left.shape[-1]
    mean = np.trace(squares, axis1=1, axis2=2) / size
    squares += (np.where(mean > 0, _DAMPING * mean, 1)[:, None, None]) * np.eye(size)
    shares = np.linalg.cholesky(np.linalg.inv(squares)).swapaxes(1, 2)
    multiples = np.zeros_like(scale, dtype=np.float64)
    for first in range(0, size, _BLOCK):
        end = min(first + _BLOCK, size)
        errors = np.zeros_like(left[..., first:end])
        for column in range(first, end):
            lowest = np.maximum(-largest, -LARGEST_PAIR - multiples)
            highest = np.minimum(largest, LARGEST_PAIR - multiples)
            multiples = np.clip(np.round(left[..., column] / scale), lowest, highest)
            rounded[..., column] = multiples * scale
            error = (left[..., column] - rounded[..., column]) / shares[:, None, column, column]
            left[..., column + 1 : end] -= error[..., None] * shares[:, None, column, column + 1 : end]
            errors[..., column - first] = error
        left[..., end:] -= errors @ shares[:, first:end, end:]
    return rounded

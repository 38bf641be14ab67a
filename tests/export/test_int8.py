"""`fusion-captioner export --int8`: close to float32, and nothing stays float32 in silence."""

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from tiny_exports import Export, tiny_processor
from tiny_models import tiny_model

from fusion_captioner.cli import main
from fusion_captioner.export.int8 import (
    CalibrationImages,
    compress_weights,
    first_convolutions,
    keep_sums,
    quantize_decoder_part,
    quantize_image_part,
)
from fusion_captioner.export.rounding import watched
from fusion_captioner.image_processing_fusion_captioner import SETTINGS
from fusion_captioner.inference.exported_captioner import ExportedCaptioner
from fusion_captioner.inference.runtimes import import_runtime

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("onnx_operators_once")]

RUNTIMES = ["onnx", "openvino", "openvino+onnx"]
# recurrent layers and attention in one
LAYERS = {"text_encoder_type": "lstm", "decoder_type": "transformer"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of much the same brightness: ranges are a mean over images, and what is far brighter than most lies
    beyond."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(10):
        low, high = random.integers(0, 40), random.integers(216, 256)
        Image.fromarray(random.integers(low, high + 1, (40, 40, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    tiny_model(**LAYERS).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=RUNTIMES)
def int8(
    request: pytest.FixtureRequest, checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that the command writes, for each runtime."""
    folder = tmp_path_factory.mktemp("int8") / request.param
    flags = ["--int8", "--calibration", str(photos)]
    assert main(["export", str(checkpoint), "--to", request.param, "--out", str(folder), *flags]) == 0
    return folder


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def first_step(captioner: ExportedCaptioner, regions: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The inputs of a token behind nothing, another one for each image."""
    tokens = np.arange(3, 3 + len(regions[0]))[:, None]
    shapes = [
        [0 if size == "past" else size for size in state["shape"][2:]] for state in captioner.description["states"]
    ]
    states = [np.zeros([len(tokens), 1, *shape], np.float32) for shape in shapes]
    return tokens, np.ones((*tokens.shape, 1), np.int64), *regions, *states


def test_int8_is_close_to_float32(
    capsys: pytest.CaptureFixture[str], export: Export, int8: Path, photos: Path
) -> None:
    assert json.loads((int8 / "exported_captioner.json").read_text())["dtype"] == "int8"
    # runtimes differ far less in float32 than int8 does from it
    small, whole = (ExportedCaptioner(each, num_threads=1) for each in (int8, export("onnx", **LAYERS)))
    pixel_values = whole.preprocess(sorted(photos.iterdir()))
    regions = whole._image_part((pixel_values,))
    for found, expected in zip(small._image_part((pixel_values,)), regions, strict=True):
        assert 0 < difference(found, expected) < 0.1
    steps = [captioner._decoder_step(first_step(captioner, regions)) for captioner in (small, whole)]
    for found, expected in zip(*steps, strict=True):
        assert 0 < difference(found, expected) < 0.1
    assert main(["caption", str(photos), "--model", str(int8), "--max-new-tokens", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_no_caption_depends_on_the_rest_of_its_batch(int8: Path, photos: Path) -> None:
    captioner = ExportedCaptioner(int8, num_threads=1)
    regions = captioner._image_part((captioner.preprocess(sorted(photos.iterdir())),))
    inputs = first_step(captioner, regions)
    together = captioner._decoder_step(inputs)[0]
    rows = range(len(together))
    alone = [captioner._decoder_step(tuple(array[row : row + 1] for array in inputs))[0] for row in rows]
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-4, atol=1e-5)


def test_calibration_takes_evenly_spaced_images(photos: Path) -> None:
    names = sorted(map(str, photos.iterdir()))
    settings = {name: getattr(tiny_processor().image_processor, name) for name in SETTINGS}
    reader = CalibrationImages(names, settings, "pixels", 3)
    assert reader.images == [names[0], names[4], names[9]]
    read = list(reader)
    assert [image["pixels"].shape for image in read] == [(1, 3, 32, 32)] * 3


def test_the_first_convolutions_stay_float32_where_they_have_little_to_compute() -> None:
    """Three convolutions of 1, 3 and 96 % of all multiplications, a limit behind the first."""
    random, names = np.random.default_rng(0), ["pixels", "small", "limited", "medium", "large"]
    sizes = {"small": (1, 1, 1, 1), "medium": (3, 1, 1, 1), "large": (32, 3, 1, 1)}
    weights = [
        onnx.numpy_helper.from_array(random.random(size, np.float32), f"{name}_weight") for name, size in sizes.items()
    ]
    nodes = [
        onnx.helper.make_node("Relu", [before], [name], name)
        if name == "limited"
        else onnx.helper.make_node("Conv", [before, f"{name}_weight"], [name], name)
        for before, name in itertools.pairwise(names)
    ]
    floats = onnx.TensorProto.FLOAT
    ends = [
        onnx.helper.make_tensor_value_info(name, floats, ["images", channels, 4, 4])
        for name, channels in (("pixels", 1), ("large", 32))
    ]
    graph = onnx.helper.make_graph(nodes, "graph", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    assert first_convolutions(model, {"pixels": np.ones((1, 1, 4, 4), np.float32)}) == ["small", "medium", "limited"]


def test_sums_are_added_up_in_float32() -> None:
    """The second sum takes the first one before it is rounded; what is no sum, and the product, read bytes."""
    make = onnx.helper.make_node
    nodes = []
    for name, maker in (
        ("x", None),
        ("y", None),
        ("first", ["x_read", "y_read"]),
        ("second", ["first_read", "x_read"]),
    ):
        if maker:
            nodes.append(make("Add", maker, [name]))
        nodes.append(make("QuantizeLinear", [name, "step", "zero"], [f"{name}_bytes"]))
        nodes.append(make("DequantizeLinear", [f"{name}_bytes", "step", "zero"], [f"{name}_read"]))
    nodes.append(make("MatMul", ["first_read", "second_read"], ["z"]))
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], []))
    keep_sums(model)
    read = {node.output[0]: list(node.input) for node in model.graph.node}
    assert read["first"] == ["x_read", "y_read"] and read["second"] == ["first", "x_read"]
    assert read["z"] == ["first_read", "second_read"] and read["first_bytes"][0] == "first"


def test_an_image_part_has_equal_channels_and_sums_in_float32(photos: Path, tmp_path: Path) -> None:
    """A sum of two convolutions, and one of it and a third; channel 0 of all is a tenth as wide as channel 1."""
    make, random, constants, nodes = onnx.helper.make_node, np.random.default_rng(0), [], []

    def convolution(read: str, inputs: int, outputs: int, name: str, **attributes: object) -> str:
        weights = random.normal(size=(outputs, inputs, 1, 1)).astype(np.float32)
        if outputs == 2:
            weights[0] /= 10
        bias = random.normal(size=outputs).astype(np.float32)
        arrays = {f"{name}_weight": weights, f"{name}_bias": bias}
        constants.extend(onnx.numpy_helper.from_array(array, each) for each, array in arrays.items())
        nodes.append(make("Conv", [read, *arrays], [name], name, **attributes))
        return name

    wide = convolution("pixels", 3, 8, "wide")
    nodes.append(make("Add", [convolution(wide, 8, 2, "a"), convolution(wide, 8, 2, "b")], ["first"], "first"))
    convolution("first", 2, 8, "inner")
    nodes.append(make("Add", ["first", convolution("inner", 8, 2, "c")], ["second"], "second"))
    convolution("second", 2, 40, "result")
    floats = onnx.TensorProto.FLOAT
    ends = [
        onnx.helper.make_tensor_value_info(name, floats, ["images", channels, 32, 32])
        for name, channels in (("pixels", 3), ("result", 40))
    ]
    graph = onnx.helper.make_graph(nodes, "graph", ends[:1], ends[1:], constants)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "float32.onnx",
    )
    settings = {name: getattr(tiny_processor().image_processor, name) for name in SETTINGS}
    names = sorted(map(str, photos.iterdir()))
    quantize_image_part(tmp_path / "float32.onnx", tmp_path / "int8.onnx", names, settings)
    model = onnx.load(tmp_path / "int8.onnx")
    second = next(node for node in model.graph.node if node.name == "second")
    assert second.input[0] == "first"
    pixels = CalibrationImages(names, settings, "pixels", 1).get_next()
    narrow, broad = np.abs(watched(model, {"second"})(pixels)["second"][0]).max((1, 2))
    assert 0.3 < narrow / broad < 3


def test_a_layer_of_onnx_without_int8_form_is_refused(tmp_path: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "weights")
    arrays = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    einsum = onnx.helper.make_node("Einsum", ["x", "weights"], ["y"], "the layer", equation="ij,jk->ik")
    graph = onnx.helper.make_graph([einsum], "graph", arrays[:1], arrays[1:], [weights])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "einsum.onnx")
    with pytest.raises(ValueError, match=r"'the layer'.* would stay float32"):
        quantize_decoder_part(tmp_path / "einsum.onnx", tmp_path / "int8.onnx", lambda part: None)


def test_a_layer_of_openvino_without_int8_form_is_refused() -> None:
    openvino = import_runtime("openvino", "openvino")  # without its telemetry
    opset = openvino.opset13
    rows = opset.parameter([1, 2, 2], np.float32)
    product = opset.matmul(rows, opset.constant(np.ones((1, 2, 2), np.float32)), False, False)
    with pytest.raises(ValueError, match="no int8 form"):
        compress_weights(openvino.Model([product], [rows]))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--int8"], ["--int8 needs --calibration FOLDER"]),
        (["--calibration", "photos"], ["--calibration (photos)", "--int8"]),
        (["--int8", "--calibration", "nowhere"], ["--calibration (nowhere)", "no such folder"]),
    ],
)
def test_wrong_flags(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(checkpoint), "--to", "onnx", "--out", str(out), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [word for word in words if word not in line] == []
    assert not out.exists()

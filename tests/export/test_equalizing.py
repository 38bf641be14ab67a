"""Channels of sums of convolutions: as wide as each other afterwards, and the model's results what they were."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusion_captioner.export.equalizing import equalize_channels, find_streams

CHANNELS, WIDTH = 6, 9


class Graph:
    """An ONNX model that grows by a layer a call; weights are random."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes, self.constants = [], []

    def convolution(self, read: str, inputs: int, outputs: int, kernel: int = 1, spread: bool = False, **attributes):
        """Adds a convolution; with `spread`, its channels have ranges and centres that differ much."""
        weights = self.random.normal(size=(outputs, inputs // attributes.get("group", 1), kernel, kernel))
        bias = self.random.normal(size=outputs)
        if spread:
            wide = np.geomspace(0.3, 4, outputs)
            weights, bias = weights * wide[:, None, None, None], bias * 3 * wide
        return self.node("Conv", [read, self.constant(weights), self.constant(bias)], **attributes)

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array.astype(np.float32), f"constant{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, operator: str, inputs: list[str], **attributes) -> str:
        name = f"tensor{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], f"node{len(self.nodes)}", **attributes))
        return name

    def save(self, path: Path, *outputs: str) -> Path:
        tensors = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, WIDTH, WIDTH] if name == "x" else None)
            for name in ("x", *outputs)
        ]
        graph = helper.make_graph(self.nodes, "graph", tensors[:1], tensors[1:], self.constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        return path


def image(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(1, 3, WIDTH, WIDTH)).astype(np.float32)}


def results(path: Path, inputs: dict[str, np.ndarray], *names: str) -> list[np.ndarray]:
    model = onnx.load(path)
    known = {each.name for each in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(names) or None, inputs)


def block(graph: Graph, read: str) -> str:
    """What an EfficientNet has between two sums; the tensor is its last one."""
    wide = graph.node("Relu", [graph.convolution(read, CHANNELS, 8)])
    wide = graph.node("Relu", [graph.convolution(wide, 8, 8, 3, pads=[1, 1, 1, 1], group=8)])
    return graph.convolution(wide, 8, CHANNELS, spread=True)


def test_sums_of_convolutions_have_channels_as_wide_as_each_other(tmp_path: Path) -> None:
    graph = Graph()
    first = graph.convolution("x", 3, CHANNELS, 3, spread=True)
    second = graph.node("Add", [block(graph, first), first])
    third = graph.node("Add", [second, block(graph, second)])
    path = graph.save(tmp_path / "model.onnx", graph.convolution(third, CHANNELS, 5))
    (stream,) = find_streams(onnx.load(path))
    assert {first, second, third} < set(stream.tensors) and len(stream.tensors) == 5 and len(stream.readers) == 3

    images = [image(seed) for seed in range(8)]
    expected = [results(path, each)[0] for each in images]
    equalize_channels(path, images)
    for each, whole in zip(images, expected):
        np.testing.assert_allclose(results(path, each)[0], whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max())
    for name in (first, second, third):
        tensors = np.stack([results(path, each, name)[0][0] for each in images])
        lowest, highest = tensors.min((2, 3)).mean(0), tensors.max((2, 3)).mean(0)
        reach = np.maximum(highest, -lowest)
        assert reach.min() > 0.2 * reach.max()  # before: a tenth and less
        assert np.abs(highest + lowest).max() < 0.5 * reach.max()


def left_alone(graph: Graph, tensor: str, case: str) -> str:
    """A reader of `tensor` that cannot undo a change of its channels, and the model's output."""
    reader = graph.convolution(tensor, CHANNELS, 5)
    if case == "limit":
        return graph.node("Add", [reader, graph.convolution(graph.node("Relu", [tensor]), CHANNELS, 5)])
    if case == "padding":
        return graph.node("Concat", [graph.convolution(tensor, CHANNELS, 5, pads=[1, 1, 1, 1])], axis=1)
    if case == "kernel":
        return graph.node("Concat", [graph.convolution(tensor, CHANNELS, 5, 3)], axis=1)
    if case == "weights":
        return graph.node("Conv", [graph.constant(np.ones((1, CHANNELS, 20, 20))), tensor])
    if case == "groups":
        return graph.node("Concat", [reader, graph.convolution(tensor, CHANNELS, 6, group=2)], axis=1)
    if case == "constant":
        moved = graph.node("Add", [tensor, graph.constant(np.ones((1, CHANNELS, 1, 1)))])
        return graph.node("Add", [reader, graph.convolution(moved, CHANNELS, 5)])
    if case == "no bias":
        weights = graph.constant(graph.random.normal(size=(5, CHANNELS, 1, 1)))
        return graph.node("Add", [reader, graph.node("Conv", [tensor, weights])])
    if case == "one channel":
        return graph.node("Add", [tensor, graph.convolution(tensor, CHANNELS, 1)])
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case", ["limit", "padding", "kernel", "weights", "groups", "constant", "no bias", "one channel"]
)
def test_what_other_layers_read_stays_as_it_is(tmp_path: Path, case: str) -> None:
    graph = Graph()
    tensor = graph.convolution("x", 3, CHANNELS, spread=True)
    output = left_alone(graph, tensor, case)
    path = graph.save(tmp_path / "model.onnx", output)
    before = path.read_bytes()
    equalize_channels(path, [image(0)])
    assert path.read_bytes() == before


def test_outputs_and_shared_weights_stay_as_they_are(tmp_path: Path) -> None:
    graph = Graph()
    tensor = graph.convolution("x", 3, CHANNELS, spread=True)
    path = graph.save(tmp_path / "output.onnx", tensor, graph.convolution(tensor, CHANNELS, 5))
    assert not find_streams(onnx.load(path))
    graph = Graph()
    tensor = graph.convolution("x", 3, CHANNELS, spread=True)
    other = graph.node("Conv", list(graph.nodes[-1].input))
    path = graph.save(tmp_path / "shared.onnx", *(graph.convolution(each, CHANNELS, 5) for each in (tensor, other)))
    assert not find_streams(onnx.load(path))


def test_a_channel_that_is_always_zero_stays_so(tmp_path: Path) -> None:
    graph = Graph()
    tensor = graph.convolution("x", 3, CHANNELS, spread=True)
    for constant in graph.constants:
        array = numpy_helper.to_array(constant).copy()
        array[2] = 0
        constant.CopyFrom(numpy_helper.from_array(array, constant.name))
    path = graph.save(tmp_path / "model.onnx", graph.convolution(tensor, CHANNELS, 5))
    expected = results(path, image(0))[0]
    equalize_channels(path, [image(0)])
    assert not results(path, image(1), tensor)[0][0, 2].any()
    np.testing.assert_allclose(results(path, image(0))[0], expected, rtol=1e-3, atol=1e-3)


def test_a_channel_that_few_images_have_is_not_cut_off_to_little(tmp_path: Path) -> None:
    """In 15 of 16 images it is a hundredth as wide."""
    graph = Graph()
    tensor = graph.convolution("x", 3, CHANNELS)
    path = graph.save(tmp_path / "model.onnx", graph.convolution(tensor, CHANNELS, 5))
    model = onnx.load(path)
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[:, 2] = 0
    weights[2], weights[2, 2] = 0, 1  # the third channel is that of the pixels
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, model.graph.initializer[0].name))
    onnx.save(model, path)
    images = [image(seed) for seed in range(16)]
    for each in images[1:]:
        each["x"][:, 2] *= 0.01
    equalize_channels(path, images)
    reach = np.abs(results(path, images[0], tensor)[0][0]).max((1, 2))
    assert reach[2] < 3 * np.delete(reach, 2).max()


def test_graphs_within_and_other_dimensions_stay_as_they_are(tmp_path: Path) -> None:
    graph = Graph()
    tensor = graph.convolution("x", 3, CHANNELS, spread=True)
    output = graph.convolution(tensor, CHANNELS, 5)
    within = helper.make_graph(
        [helper.make_node("Identity", [tensor], ["inner"])],
        "within",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    yes = graph.node("ReduceMin", [graph.node("Cast", [output], to=TensorProto.INT32)], keepdims=0)
    graph.node("If", [graph.node("Cast", [yes], to=TensorProto.BOOL)], then_branch=within, else_branch=within)
    assert not find_streams(onnx.load(graph.save(tmp_path / "within.onnx", graph.nodes[-1].output[0])))
    rows = [
        numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in (("a", (4, 3, 1)), ("b", (4,)), ("c", (5, 4, 1)), ("d", (5,)))
    ]
    nodes = [helper.make_node("Conv", ["x", "a", "b"], ["y"]), helper.make_node("Conv", ["y", "c", "d"], ["z"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "z")]
    assert not find_streams(helper.make_model(helper.make_graph(nodes, "rows", ends[:1], ends[1:], rows)))

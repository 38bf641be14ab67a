"""Rounding of weights: on the grid, a layer's own axes, and closer to the layer's output than the nearest
multiples."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusion_captioner.export.rounding import Product, round_matrices, round_weights, weight_scales


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def layer(op: str, weights: np.ndarray, image_shape: list[int], **attributes: object) -> onnx.ModelProto:
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", image_shape), ("y", None))
    )
    graph = helper.make_graph([node], "layer", [x], [y], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outputs(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image})[0]


def smooth(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Neighbours much alike, as pixels are."""
    values = np.cumsum(random.normal(size=shape), axis=-1)
    return (np.cumsum(values, axis=-2) if len(shape) == 4 else values).astype(np.float32)


def assert_bytes_add_up(multiples: np.ndarray) -> None:
    """In rows of int8 weights, two products with bytes of 255 fit into 16 bits; and no row is smaller than need be."""
    pairs = 255 * np.abs(multiples[:, 1:] + multiples[:, :-1])
    assert np.abs(multiples).max() <= 127 and pairs.max() < 2**15
    assert (np.maximum(np.abs(multiples).max(axis=1), pairs.max(axis=1) / 255) > 60).all()


LAYERS = {
    "convolution": ("Conv", (32, 4, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "dilated": ("Conv", (32, 4, 3, 3), {"dilations": [2, 1]}),
    "groups": ("Conv", (32, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ("Conv", (32, 1, 3, 3), {"group": 4}),
    "matmul": ("MatMul", (12, 40), {}),
    "gemm": ("Gemm", (12, 40), {}),
    "gemm, rows": ("Gemm", (40, 12), {"transB": 1}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_times_weights_are_the_layers_output(name: str, random: np.random.Generator) -> None:
    """What is rounded by is what the layer computes, at every place once."""
    op, shape, attributes = LAYERS[name]
    weights = random.normal(size=shape).astype(np.float32)
    image = smooth(random, 1, 4, 9, 12) if op == "Conv" else smooth(random, 7, 12)
    model = layer(op, weights, list(image.shape), **attributes)
    product = Product(model.graph.node[0], shape)
    np.testing.assert_array_equal(product.weights(product.matrices(weights)), weights)
    found = product.inputs(image, np.random.default_rng(0)) @ product.matrices(weights).swapaxes(1, 2)
    expected = outputs(model, image)
    # (G, places, O) and (1, G * O, *places) or (places, O)
    expected = expected[0].reshape(product.groups, -1, found.shape[1]) if op == "Conv" else expected.T[None]
    np.testing.assert_allclose(np.sort(found.swapaxes(1, 2)), np.sort(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_the_output_changes_less_than_with_the_nearest_multiples(
    name: str, tmp_path: Path, random: np.random.Generator
) -> None:
    op, shape, attributes = LAYERS[name]
    weights = random.normal(size=shape).astype(np.float32)
    images = [smooth(random, 1, 4, 9, 12) if op == "Conv" else smooth(random, 40, 12) for _ in range(17)]
    model = layer(op, weights, list(images[0].shape), **attributes)
    onnx.save(model, tmp_path / "layer.onnx")
    scales = round_weights(tmp_path / "layer.onnx", [{"x": image} for image in images[:-1]])["w"]
    rounded = onnx.load(tmp_path / "layer.onnx")
    changed = numpy_helper.to_array(rounded.graph.initializer[0])

    axis = scales[0]["axis"]
    rest = tuple(place for place in range(weights.ndim) if place != axis)
    scale = np.array([channel["scale"] for channel in scales])
    largest = np.abs(weights).max(axis=rest)
    of_inputs = np.moveaxis(weights, axis, 0).reshape(len(scales), -1)
    pairs = np.abs(of_inputs[:, 1:] + of_inputs[:, :-1]).max(axis=1)
    is_dense_kernel = op == "Conv" and shape[1] > 1
    expected = largest / 64 if is_dense_kernel else np.maximum(largest, pairs) / 127
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    scale = np.expand_dims(scale, rest)
    multiples = changed / scale
    np.testing.assert_allclose(multiples, np.round(multiples), atol=1e-4)
    rows = np.round(np.moveaxis(multiples, axis, 0)).reshape(len(scales), -1)
    assert_bytes_add_up(rows)
    if is_dense_kernel:  # any two of a kernel over several channels may be neighbours
        assert np.abs(rows).max() <= 64

    nearest = layer(op, (np.round(weights / scale) * scale).astype(np.float32), list(images[0].shape), **attributes)
    exact, found, plain = (outputs(each, images[-1]) for each in (model, rounded, nearest))
    assert np.square(found - exact).sum() < 0.5 * np.square(plain - exact).sum()


def test_blocks_of_inputs_change_nothing(monkeypatch: pytest.MonkeyPatch, random: np.random.Generator) -> None:
    rows = smooth(random, 2, 300, 20)
    arguments = random.normal(size=(2, 3, 20)), rows.swapaxes(1, 2) @ rows, np.full((2, 3), 0.1)
    whole = round_matrices(*arguments)
    monkeypatch.setattr("fusion_captioner.export.rounding._BLOCK", 6)
    np.testing.assert_allclose(round_matrices(*arguments), whole)


def test_inputs_that_are_always_zero_leave_the_nearest_multiples(random: np.random.Generator) -> None:
    matrices = random.normal(size=(1, 3, 5))
    rounded = round_matrices(matrices, np.zeros((1, 5, 5)), np.full((1, 3), 0.25))
    np.testing.assert_allclose(rounded, np.round(matrices / 0.25) * 0.25)


def test_scales_are_as_small_as_bytes_and_pairs_allow() -> None:
    rows = np.array([[1.0, -2.0, 0.5], [2.0, 1.5, -3.0], [0.0, 0.0, 0.0]], np.float32)
    scales = weight_scales(rows)
    np.testing.assert_allclose(scales, [2 / 127, 3.5 / 127, 1])
    assert scales.dtype == np.float32


def test_what_makes_up_for_an_error_stays_within_the_limit_of_its_neighbour() -> None:
    """Rounded down by .49, the first weight asks for 2.5 more from the second, whose input is a fifth: 66, and 63 + 66
    are too many."""
    inputs = np.array([5.0, 1.0])
    squares = np.outer(inputs, inputs)[None]
    rounded = round_matrices(np.array([[[63.49, 63.51]]]), squares, np.array([[1.0]]))
    np.testing.assert_array_equal(rounded, [[[63, 65]]])
    rounded = round_matrices(np.array([[[-63.49, -63.51]]]), squares, np.array([[1.0]]))
    np.testing.assert_array_equal(rounded, [[[-63, -65]]])

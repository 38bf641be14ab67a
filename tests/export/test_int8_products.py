"""Products of int8 weights by tensors whose scales are known beforehand."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusion_captioner.export.int8_products import observe, quantize_products, scale_of
from fusion_captioner.inference.runtimes import Part

INPUTS, OUTPUTS = 96, 40


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
    drawn[:, 3] = 0  # an output that nothing reaches
    drawn[:, 5] *= 1000  # one whose scale no other may have
    return drawn


def model_of(weights: np.ndarray, bias: np.ndarray | None = None) -> onnx.ModelProto:
    """`rows·weights + bias`"""
    nodes = [helper.make_node("MatMul", ["rows", "weights"], ["y" if bias is None else "product"], "product")]
    constants = [numpy_helper.from_array(weights, "weights")]
    if bias is not None:
        nodes.append(helper.make_node("Add", ["product", "bias"], ["y"], "addition"))
        constants.append(numpy_helper.from_array(bias, "bias"))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["T", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", OUTPUTS])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantized(model: onnx.ModelProto, weights: np.ndarray, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The model in int8, whose scales are for such rows."""
    quantize_products(model, {"weights": weights}, lambda part: part((rows,)))
    left = [each for each in model.graph.initializer if each.name != "weights"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)  # nothing may read the float32 weights any more
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, {"rows": rows})[0]


def rows_like(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("has_bias", [False, True])
def test_each_output_is_near_float32(weights: np.ndarray, has_bias: bool) -> None:
    bias = rows_like(OUTPUTS, seed=4) if has_bias else None
    product = quantized(model_of(weights, bias), weights, rows_like(50, INPUTS, seed=1))
    rows = rows_like(7, INPUTS, seed=2)
    expected = rows @ weights
    errors = np.abs(product(rows) - (expected if bias is None else expected + bias)).max(axis=0)
    assert np.all(errors <= 0.05 * np.abs(expected).max(axis=0) + 1e-6)


def test_a_row_does_not_depend_on_the_others(weights: np.ndarray) -> None:
    product = quantized(model_of(weights), weights, rows_like(50, INPUTS, seed=1))
    rows = rows_like(6, INPUTS, seed=2)
    rows[0] *= 1e4  # in a scale for all rows, the others would be zeros
    rows[1] = 0
    together = product(rows)
    np.testing.assert_array_equal(together, [product(row[None])[0] for row in rows])
    np.testing.assert_array_equal(together[1], np.zeros(OUTPUTS))


def test_the_scale_is_the_one_with_the_least_squares() -> None:
    rows = rows_like(200, 64, seed=3)
    rows[0, 0] = 40  # one value that is not worth coarse steps for all the others
    step = scale_of(rows)

    def error(step: float) -> float:
        return float(np.square(np.clip(np.round(rows / step), -128, 127) * step - rows).sum())

    assert step.dtype == np.float32 and step.shape == ()
    assert error(step) <= min(error(40 / 127), error(float(step) * 1.3), error(float(step) / 1.3))
    assert scale_of(np.zeros((2, 2), np.float32)) > 0


def test_what_is_observed(weights: np.ndarray) -> None:
    model = model_of(weights, np.ones(OUTPUTS, np.float32))
    rows = rows_like(3, INPUTS, seed=1)
    results = []

    def run(part: Part) -> None:
        results.extend([part((rows[:2],)), part((rows[2:],))])

    seen = observe(model, ["rows", "product"], run)
    np.testing.assert_array_equal(seen["rows"], rows)
    np.testing.assert_allclose(seen["product"], rows @ weights, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.concatenate([one for (one,) in results]), seen["product"] + 1, rtol=1e-6)
    assert [each.name for each in model.graph.output] == ["y"]

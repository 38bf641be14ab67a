"""Products of int8 weights by rows that are quantised one by one."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusion_captioner.export.int8_products import quantize_products

INPUTS, OUTPUTS = 96, 40


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
    drawn[:, 3] = 0  # an output that nothing reaches
    drawn[:, 5] *= 1000  # one whose scale no other may have
    return drawn


@pytest.fixture(scope="module")
def product(weights: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path: Path = tmp_path_factory.mktemp("int8") / "product.onnx"
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rows", "weights"], ["products"], "product")],
        "graph",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["T", INPUTS])],
        [helper.make_tensor_value_info("products", TensorProto.FLOAT, ["T", OUTPUTS])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    quantize_products(model, {"weights": weights}, 64)
    del model.graph.initializer[0]  # the float32 weights, which nothing reads any more
    onnx.save(model, path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_each_output_is_near_float32(product: onnxruntime.InferenceSession, weights: np.ndarray) -> None:
    rows = np.random.default_rng(1).standard_normal((7, INPUTS)).astype(np.float32)
    (found,) = product.run(None, {"rows": rows})
    errors = np.abs(found - rows @ weights).max(axis=0)
    assert np.all(errors <= 0.05 * np.abs(rows @ weights).max(axis=0) + 1e-6)


def test_a_row_does_not_depend_on_the_others(product: onnxruntime.InferenceSession) -> None:
    rows = np.random.default_rng(2).standard_normal((6, INPUTS)).astype(np.float32)
    rows[0] *= 1e4  # in a scale for all rows, the others would be zeros
    rows[1] = 0
    (together,) = product.run(None, {"rows": rows})
    alone = [product.run(None, {"rows": row[None]})[0][0] for row in rows]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[1], np.zeros(OUTPUTS))


def test_rows_of_any_size_keep_their_precision(product: onnxruntime.InferenceSession, weights: np.ndarray) -> None:
    row = np.random.default_rng(3).standard_normal((1, INPUTS)).astype(np.float32)
    (small,), (large,) = (product.run(None, {"rows": row * np.float32(factor)}) for factor in (2.0**-20, 2.0**20))
    np.testing.assert_array_equal(small * np.float32(2.0**40), large)

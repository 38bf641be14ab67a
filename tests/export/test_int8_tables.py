"""Looked-up rows in int8: near the float32 rows, and held once where a product has the same weights."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusion_captioner.export.int8 import quantize_decoder_part
from fusion_captioner.export.int8_tables import WORDS, quantize_tables, share_rows, store_rows

NUMBER, WIDTH = 40, 20


def saved(path: Path, embedding: np.ndarray, output: np.ndarray | None) -> onnx.ModelProto:
    """A graph from `ids (T, 1)` to `rows (T, 1, D)` and, with `output (D, V)`, `logits (T, 1, V)` of these rows."""
    values = {"embedding": embedding} | ({} if output is None else {"output": output})
    nodes = [helper.make_node("Gather", ["embedding", "ids"], ["rows"], axis=0)]
    outputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["T", 1, WIDTH])]
    if output is not None:
        nodes.append(helper.make_node("MatMul", ["rows", "output"], ["logits"], "product"))
        outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", 1, output.shape[1]]))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["T", 1])
    weights = [numpy_helper.from_array(array, name) for name, array in values.items()]
    graph = helper.make_graph(nodes, "graph", [ids], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return model


def run(path: Path, ids: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"ids": ids})


def tables(path: Path) -> list[list[int]]:
    """Shapes of all weights in 8 bits."""
    return [list(each.dims) for each in onnx.load(path).graph.initializer if each.data_type == TensorProto.INT8]


@pytest.fixture
def embedding() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((NUMBER, WIDTH)).astype(np.float32)
    rows[3] = 0  # such as that of padding
    return rows


def test_rows_are_within_half_a_step_of_float32(tmp_path: Path, embedding: np.ndarray) -> None:
    model = saved(tmp_path / "float32.onnx", embedding, None)
    quantize_tables(model)
    onnx.save(model, tmp_path / "int8.onnx")
    ids = np.arange(NUMBER)[:, None]
    (rows,) = run(tmp_path / "int8.onnx", ids)
    step = np.abs(embedding).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(rows[:, 0] - embedding) <= step / 2 + 1e-6)
    assert tables(tmp_path / "int8.onnx") == [[NUMBER, WIDTH]]
    assert not [each for each in model.graph.initializer if each.name == "embedding"]


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_held_once(tmp_path: Path, embedding: np.ndarray, tied: bool) -> None:
    other = np.random.default_rng(1).standard_normal((WIDTH, NUMBER)).astype(np.float32)
    output = np.ascontiguousarray(embedding.T) if tied else other
    saved(tmp_path / "float32.onnx", embedding, output)
    ids = np.array([[5], [3], [39]])
    expected = run(tmp_path / "float32.onnx", ids)  # `quantize_decoder_part` changes its source
    quantize_decoder_part(tmp_path / "float32.onnx", tmp_path / "int8.onnx", lambda part: part((ids,)))
    assert len(tables(tmp_path / "int8.onnx")) == (1 if tied else 2)
    for found, right in zip(run(tmp_path / "int8.onnx", ids), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=0.03 * np.abs(right).max())


def product_of(path: Path, weights: np.ndarray) -> None:
    """A file from `hidden (T, D)` to `logits (T, C)` by weights `(C, D)`, in int8."""
    nodes = [helper.make_node("MatMul", ["hidden", "weights"], ["logits"], "product")]
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["T", WIDTH])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", len(weights)])
    columns = numpy_helper.from_array(np.ascontiguousarray(weights.T), "weights")
    graph = helper.make_graph(nodes, "graph", [hidden], [logits], [columns])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    rows = np.random.default_rng(2).standard_normal((9, WIDTH)).astype(np.float32)
    quantize_decoder_part(path, path, lambda part: part((rows,)))


@pytest.mark.parametrize("has_positions", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_output_layers_are_held_once(
    tmp_path: Path, embedding: np.ndarray, tied: bool, has_positions: bool
) -> None:
    other = np.random.default_rng(1).standard_normal((NUMBER, WIDTH)).astype(np.float32)
    saved(tmp_path / "step.onnx", embedding, None)
    ids, tokens = np.arange(NUMBER)[:, None], {"a": [0, 3, 5, 39], "b": [1, 5]}
    quantize_decoder_part(tmp_path / "step.onnx", tmp_path / "step.onnx", lambda part: part((ids,)))
    for name, known in tokens.items():
        product_of(tmp_path / f"{name}.onnx", (embedding if tied else other)[known])
    hidden = np.random.default_rng(3).standard_normal((3, WIDTH)).astype(np.float32)

    def results() -> list[np.ndarray]:
        layers = [onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in tokens]
        return [*run(tmp_path / "step.onnx", ids), *(layer.run(None, {"hidden": hidden})[0] for layer in layers)]

    if has_positions:  # a second table, before that of words
        model = onnx.load(tmp_path / "step.onnx")
        store_rows(model.graph, "a", embedding[:7] + 1, np.full(7, 0.02, np.float32))
        for suffix in ("_Q8", "_scales"):
            model.graph.node.append(helper.make_node("Gather", [f"a{suffix}", "ids"], [f"positions{suffix}"]))
        onnx.save(model, tmp_path / "step.onnx")
        ids = ids[:7]
    before = results()
    share_rows(tmp_path / "step.onnx", {tmp_path / f"{name}.onnx": known for name, known in tokens.items()})
    for found, expected in zip(results(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (tmp_path / WORDS).exists() == tied
    if tied:
        for path in tmp_path.glob("*.onnx"):
            tensors = onnx.load(path, load_external_data=False).graph.initializer
            held = [each.name for each in tensors if each.data_type == TensorProto.INT8 and each.raw_data]
            assert held == (["a_Q8"] if has_positions and path.stem == "step" else [])

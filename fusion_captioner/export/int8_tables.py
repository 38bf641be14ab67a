"""
Tables of an ONNX model in int8: matrices whose rows are looked up, as the embeddings of words are.

V: rows, D: columns
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from fusion_captioner.inference.runtimes import import_runtime

# The operators that look rows up, `GatherND` as torch exports `rows[places]`.
LOOKUPS = ("Gather", "GatherND")


def matrices(model: Any, operators: Collection[str], place: int) -> dict[str, np.ndarray]:
    """The float32 matrices that are input number `place` of such operators, by name."""
    onnx = import_runtime("onnx", "onnx")
    names = {node.input[place] for node in model.graph.node if node.op_type in operators}
    return {
        each.name: onnx.numpy_helper.to_array(each)
        for each in model.graph.initializer
        if each.name in names and each.data_type == onnx.TensorProto.FLOAT and len(each.dims) == 2
    }


def store_rows(graph: Any, name: str, rows: np.ndarray, largest: int) -> None:
    """Add float32 rows `(V, D)` to a graph as `NAME_Q8`, int8 of `-largest` to `largest`, and `NAME_scales`
    `(V, 1)`."""
    onnx = import_runtime("onnx", "onnx")
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(largest)
    scales[scales == 0] = 1  # of words that are all zeros
    content = np.round(rows / scales).astype(np.int8)
    graph.initializer.append(onnx.numpy_helper.from_array(content, f"{name}_Q8"))
    graph.initializer.append(onnx.numpy_helper.from_array(scales, f"{name}_scales"))


def quantize_tables(model: Any, products: Mapping[str, np.ndarray] | None = None) -> None:
    """
    Tables become int8; the rows that are found become float32 again.

    Args:
        model: an ONNX model, changed in place.
        products: the weights `(D, V)` of products that [`store_rows`] has stored as `(V, D)`, by name. A table of the
            same numbers, as tied embeddings are, shares theirs.
    """
    graph = model.graph
    tables = matrices(model, LOOKUPS, 0)
    stored = {
        table: next((name for name, weights in (products or {}).items() if np.array_equal(weights.T, rows)), table)
        for table, rows in tables.items()
    }
    for table, name in stored.items():
        if name == table:
            store_rows(graph, table, tables[table], 127)
    nodes = []
    for node in graph.node:
        table = node.input[0] if node.op_type in LOOKUPS else ""
        nodes += _lookup(node, stored[table]) if table in stored else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _lookup(node: Any, stored: str) -> list[Any]:
    """The nodes that look up int8 rows, stored under this name, in the place of one that looks up float32 rows."""
    onnx = import_runtime("onnx", "onnx")
    found = node.output[0]

    def rows_of(suffix: str) -> Any:
        same = onnx.NodeProto()
        same.CopyFrom(node)
        same.name, same.input[0], same.output[0] = f"{found}{suffix}_rows", f"{stored}{suffix}", f"{found}{suffix}"
        return same

    whole, scales = f"{found}_whole", f"{found}_scales"
    return [
        rows_of("_Q8"),
        rows_of("_scales"),
        onnx.helper.make_node("Cast", [f"{found}_Q8"], [whole], f"{found}_Cast", to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Mul", [whole, scales], [found], f"{found}_Mul"),
    ]

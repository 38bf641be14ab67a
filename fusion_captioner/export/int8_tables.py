"""
Tables of an ONNX model in int8: matrices whose rows are looked up, as the embeddings of words are.

V: rows, D: columns, n: blocks of a row that have a scale each
"""

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import numpy as np

from fusion_captioner.inference.runtimes import import_runtime

# The operators that look rows up, `GatherND` as torch exports `rows[places]`.
LOOKUPS = ("Gather", "GatherND")
# What stands for 0 in the bytes of a table, as in ONNX Runtime's products of 8 bits.
ZERO = 128


def matrices(model: Any, operators: Collection[str], place: int) -> dict[str, np.ndarray]:
    """The float32 matrices that are input number `place` of such operators, by name."""
    onnx = import_runtime("onnx", "onnx")
    names = {node.input[place] for node in model.graph.node if node.op_type in operators}
    return {
        each.name: onnx.numpy_helper.to_array(each)
        for each in model.graph.initializer
        if each.name in names and each.data_type == onnx.TensorProto.FLOAT and len(each.dims) == 2
    }


def quantize_tables(model: Any, products: Mapping[str, np.ndarray] | None = None) -> None:
    """
    Tables become int8; the rows that are found become float32 again.

    Args:
        model: an ONNX model, changed in place.
        products: the weights `(D, V)` of products that became int8 before, in blocks of inputs, by the name that they
            had as float32. A table of the same numbers, as tied embeddings are, shares theirs.
    """
    onnx = import_runtime("onnx", "onnx")
    graph = model.graph
    tables = matrices(model, LOOKUPS, 0)
    shared = {
        table: name
        for table, rows in tables.items()
        for name, weights in (products or {}).items()
        if np.array_equal(weights.T, rows)
    }
    for table in tables.keys() - shared.keys():
        rows = tables[table]
        scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
        scales[scales == 0] = 1  # of words that are all zeros
        content = (np.round(rows / scales) + ZERO).astype(np.uint8)
        graph.initializer.append(onnx.numpy_helper.from_array(content, f"{table}_Q8"))
        graph.initializer.append(onnx.numpy_helper.from_array(scales, f"{table}_scales"))
    nodes = []
    for node in graph.node:
        table = node.input[0] if node.op_type in LOOKUPS else ""
        if table in shared:
            stored = next(each for each in graph.initializer if each.name == f"{shared[table]}_Q8")
            nodes += _lookup(node, shared[table], (tables[table].shape[1], prod(stored.dims[1:])))
        elif table in tables:
            nodes += _lookup(node, table)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _lookup(node: Any, packed: str, in_blocks: tuple[int, int] | None = None) -> list[Any]:
    """
    The nodes that look up int8 rows, in the place of one that looks up float32 rows.

    Args:
        node: looks up float32 rows; their places are `(T, 1)` where they come in blocks.
        packed: the stem of the names of bytes, uint8 `(V, D)`, and scales `(V, 1)`.
        in_blocks: where bytes are `(V, n, ⌈D / n⌉)` and scales `(V, n)`: D, and the bytes of a row, more if the
            last block is filled up.
    """
    onnx = import_runtime("onnx", "onnx")
    found = node.output[0]

    def rows_of(suffix: str) -> Any:
        same = onnx.NodeProto()
        same.CopyFrom(node)
        same.name, same.input[0], same.output[0] = f"{found}{suffix}_rows", f"{packed}{suffix}", f"{found}{suffix}"
        return same

    def make(operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        names = [f"{found}_{each}" for each in inputs]
        return onnx.helper.make_node(operator, names, [output], f"{output}_{operator}", **attributes)

    def constant(name: str, value: np.ndarray) -> Any:
        return make("Constant", [], f"{found}_{name}", value=onnx.numpy_helper.from_array(value))

    nodes = [
        rows_of("_Q8"),
        rows_of("_scales"),
        constant("zero", np.array(ZERO, np.float32)),
        make("Cast", ["Q8"], f"{found}_whole", to=onnx.TensorProto.FLOAT),
        make("Sub", ["whole", "zero"], f"{found}_signed"),
    ]
    if in_blocks is None:
        return [*nodes, make("Mul", ["signed", "scales"], found)]
    width, stored_width = in_blocks
    is_filled = stored_width > width
    nodes += [
        constant("last", np.array([-1])),
        constant("shape", np.array([0, 0, -1])),
        make("Unsqueeze", ["scales", "last"], f"{found}_of_block"),
        make("Mul", ["signed", "of_block"], f"{found}_blocks"),
        make("Reshape", ["blocks", "shape"], f"{found}_filled" if is_filled else found),
    ]
    if not is_filled:
        return nodes
    return [
        *nodes,
        constant("start", np.array([0])),
        constant("width", np.array([width])),
        make("Slice", ["filled", "start", "width", "last"], found),
    ]

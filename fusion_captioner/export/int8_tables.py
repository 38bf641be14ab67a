"""
Tables of an ONNX model in int8: matrices whose rows are looked up, as the embeddings of words are.

V: rows, D: columns
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fusion_captioner.export.rounding import largest_scales
from fusion_captioner.inference.runtimes import import_runtime

# The operators that look rows up, `GatherND` as torch exports `rows[places]`.
LOOKUPS = ("Gather", "GatherND")
# What the numbers of stored rows and their scales are called, behind the name of the table.
_SUFFIXES = ("_Q8", "_scales")
WORDS = "words.safetensors"


def matrices(model: Any, operators: Collection[str], place: int) -> dict[str, np.ndarray]:
    """The float32 matrices that are input number `place` of such operators, by name."""
    onnx = import_runtime("onnx", "onnx")
    names = {node.input[place] for node in model.graph.node if node.op_type in operators}
    return {
        each.name: onnx.numpy_helper.to_array(each)
        for each in model.graph.initializer
        if each.name in names and each.data_type == onnx.TensorProto.FLOAT and len(each.dims) == 2
    }


def store_rows(graph: Any, name: str, rows: np.ndarray, scales: np.ndarray) -> None:
    """Add float32 rows `(V, D)` with scales `(V,)` to a graph as `NAME_Q8`, int8, and `NAME_scales` `(V, 1)`."""
    onnx = import_runtime("onnx", "onnx")
    scales = scales[:, None]
    content = np.round(rows / scales).astype(np.int8)
    graph.initializer.append(onnx.numpy_helper.from_array(content, f"{name}_Q8"))
    graph.initializer.append(onnx.numpy_helper.from_array(scales, f"{name}_scales"))


def quantize_tables(
    model: Any,
    products: Mapping[str, np.ndarray] | None = None,
    scales_of: Callable[[np.ndarray], np.ndarray] = largest_scales,
) -> None:
    """
    Tables become int8; the rows that are found become float32 again.

    Args:
        model: an ONNX model, changed in place.
        products: the weights `(D, V)` of products that [`store_rows`] has stored as `(V, D)`, by name. A table of the
            same numbers, as tied embeddings are, shares theirs.
        scales_of: from the rows `(V, D)` of another table to their scales `(V,)`.
    """
    graph = model.graph
    tables = matrices(model, LOOKUPS, 0)
    stored = {
        table: next((name for name, weights in (products or {}).items() if np.array_equal(weights.T, rows)), table)
        for table, rows in tables.items()
    }
    for table, name in stored.items():
        if name == table:
            store_rows(graph, table, tables[table], scales_of(tables[table]))
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


def share_rows(step: Path, layers: Mapping[Path, Sequence[int]]) -> None:
    """
    Rows that output layers have in common with the table of words of the decoder step, as tied embeddings do, are held
    once: in a file [`WORDS`] beside them, from which all of them read.

    Args:
        step: an ONNX file in int8, changed in place.
        layers: such files, changed in place, with the tokens of their columns.
    """
    onnx = import_runtime("onnx", "onnx")
    model = onnx.load(step)
    rows_of = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    read = {path: onnx.load(path) for path in layers}
    stored = {}  # of each layer, what its product reads
    for path, layer in read.items():
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in layer.graph.initializer}
        stored[path] = [tensors[_product_of(layer) + each] for each in _SUFFIXES]

    def has_rows_of_all(table: str) -> bool:
        content = [rows_of[table + each] for each in _SUFFIXES]
        return all(
            max(ids) < len(content[0])
            and all(map(np.array_equal, (each[list(ids)] for each in content), stored[path]))
            for path, ids in layers.items()
        )

    # positions are looked up, too
    looked_up = sorted({node.input[0].removesuffix("_Q8") for node in model.graph.node if node.op_type in LOOKUPS})
    tables = [name for name in looked_up if name + _SUFFIXES[0] in rows_of]
    table = next((name for name in tables if has_rows_of_all(name)), None)
    if table is None or not layers:
        return  # the words that are written are others than those that are read
    words = {suffix: rows_of[table + suffix] for suffix in _SUFFIXES}
    file = step.with_name(WORDS)
    save_file(words, file)
    _refer(model, table, file)
    onnx.save(model, step)
    for path, layer in read.items():
        graph, name = layer.graph, _product_of(layer)
        # constant, and computed once, when the file is opened
        picked = [
            onnx.helper.make_node("Gather", [f"words{each}", "word_ids"], [name + each], f"{name}{each}_Gather")
            for each in _SUFFIXES
        ]
        kept = [tensor for tensor in graph.initializer if tensor.name not in [name + each for each in _SUFFIXES]]
        kept += [onnx.numpy_helper.from_array(words[each], f"words{each}") for each in _SUFFIXES]
        kept.append(onnx.numpy_helper.from_array(np.array(layers[path]), "word_ids"))
        nodes = [*picked, *graph.node]
        for field, content in ((graph.initializer, kept), (graph.node, nodes)):
            del field[:]
            field.extend(content)
        _refer(layer, "words", file)
        onnx.save(layer, path)


def _product_of(layer: Any) -> str:
    """The name of the weights of the one product of an output layer in int8."""
    (name,) = (each.name.removesuffix("_Q8") for each in layer.graph.initializer if each.name.endswith("_Q8"))
    return str(name)


def _refer(model: Any, table: str, file: Path) -> None:
    """Let a model read a table, which [`store_rows`] has stored under this name, from a safetensors file."""
    onnx = import_runtime("onnx", "onnx")
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for tensor in model.graph.initializer:
        if tensor.name in [table + each for each in _SUFFIXES]:
            first, end = header[tensor.name.removeprefix(table)]["data_offsets"]
            onnx.external_data_helper.set_external_data(tensor, file.name, 8 + length + first, end - first)
            tensor.ClearField("raw_data")


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

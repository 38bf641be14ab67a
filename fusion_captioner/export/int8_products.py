"""
Products with weights in int8 whose other factor is quantised with a scale beforehand (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 2), so that no caption depends on what else is in its batch, and none waits
for its scales.

K: inputs, V: outputs of a product
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fusion_captioner.export.int8_tables import store_rows
from fusion_captioner.export.rounding import watched, weight_scales
from fusion_captioner.inference.runtimes import Part, import_runtime

# The bytes of a quantised factor: what stands for 0, and steps from there to the largest.
_ZERO, _STEPS = 128, 127
# Parts of the largest value that are tried as the limit: beyond it values are cut off, so that steps become finer.
_LIMITS = np.linspace(0.2, 1, 33)


def observe(model: Any, names: Collection[str], run: Callable[[Part], None]) -> dict[str, np.ndarray]:
    """
    What tensors of a model are while it runs.

    Args:
        model: an ONNX model.
        names: of its tensors, whose last axis has a fixed size.
        run: calls the part that it is given, on inputs like those to come.

    Returns:
        name → float32 `(rows, size)`.
    """
    inputs, outputs = [each.name for each in model.graph.input], [each.name for each in model.graph.output]
    watch = watched(model, {*names, *outputs})
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def part(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        tensors = watch(dict(zip(inputs, arrays, strict=True)))
        for name, rows in seen.items():
            rows.append(tensors[name].reshape(-1, tensors[name].shape[-1]))
        return [tensors[name] for name in outputs]

    run(part)
    return {name: np.concatenate(rows) for name, rows in seen.items()}


def quantize_products(model: Any, weights: Mapping[str, np.ndarray], run: Callable[[Part], None]) -> None:
    """
    `MatMul` by weights becomes a product of uint8 by int8, with a scale for each output and one for the other factor.
    A bias that is added becomes part of the product.

    Args:
        model: an ONNX model, changed in place.
        weights: `(K, V)` of products, by name.
        run: calls the model as [`observe`] says; what it does then tells how large factors become.
    """
    onnx = import_runtime("onnx", "onnx")
    graph = model.graph
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    seen = observe(model, {node.input[0] for node in products}, run)
    for name, matrix in weights.items():
        rows = np.ascontiguousarray(matrix.T)
        store_rows(graph, name, rows, weight_scales(rows))
    constants = {"int8_zero": np.array(_ZERO, np.uint8), "int8_columns": np.array([1])}
    constants |= {f"{name}_step": scale_of(rows) for name, rows in seen.items()}
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    vectors = {each.name: each.dims[0] for each in graph.initializer if len(each.dims) == 1}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    nodes_of: dict[int, list[Any]] = {}  # what takes the place of a node
    for node in products:
        product, outputs = node.output[0], weights[node.input[1]].shape[1]
        bias = ""
        if [user.op_type for user in users.get(product, [])] == ["Add"]:
            (addition,) = users[product]
            bias = next((name for name in addition.input if vectors.get(name) == outputs), "")
        nodes_of[id(node)] = _product(node, bias, addition.output[0] if bias else product)
        if bias:
            nodes_of[id(addition)] = []
    nodes = [new for node in graph.node for new in nodes_of.get(id(node), [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    if not any(each.domain == "com.microsoft" for each in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def scale_of(rows: np.ndarray) -> np.ndarray:
    """The step, float32 without dimensions, with which int8 differs least from float32 rows, in squares."""
    peak = np.abs(rows).max(initial=0)
    if not peak:
        return np.array(1, np.float32)
    steps = (_LIMITS * peak / _STEPS).astype(np.float32)
    errors = [np.square(np.clip(np.round(rows / step), -_ZERO, _STEPS) * step - rows).sum() for step in steps]
    return steps[np.argmin(errors)]


def _product(node: Any, bias: str, output: str) -> list[Any]:
    """The nodes in the place of a `MatMul` by weights that [`store_rows`] has stored, and of the sum with a bias."""
    onnx = import_runtime("onnx", "onnx")
    (rows, weights), product = node.input, node.output[0]

    def make(operator: str, inputs: list[str], result: str, **attributes: Any) -> Any:
        return onnx.helper.make_node(operator, inputs, [result], f"{result}_{operator}", **attributes)

    def own(name: str) -> str:
        return f"{product}_{name}"

    step, zero = f"{rows}_step", "int8_zero"
    return [
        make("QuantizeLinear", [rows, step, zero], own("Q8")),
        # constant, and computed once, when the file is opened: tables of the same weights need them the other way
        make("Transpose", [f"{weights}_Q8"], own("weights"), perm=[1, 0]),
        make("Squeeze", [f"{weights}_scales", "int8_columns"], own("scales")),
        make(
            "MatMulIntegerToFloat",
            [own("Q8"), own("weights"), step, own("scales"), zero, "", bias],
            output,
            domain="com.microsoft",
        ),
    ]

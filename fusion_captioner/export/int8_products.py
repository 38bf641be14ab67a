"""
Products with weights in int8 whose other factor is quantised as it comes, row by row, so that no caption depends on
what else is in its batch.

K: inputs, V: outputs of a product
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion_captioner.export.int8_tables import store_rows
from fusion_captioner.inference.runtimes import import_runtime

# What stands for 0, 1 and -1 in the bytes of a row: its largest value becomes 1 or -1.
_ZERO, _LARGEST = 128, 127


def quantize_products(model: Any, weights: Mapping[str, np.ndarray], largest: int) -> None:
    """
    `MatMul` by weights becomes a product of uint8 by int8. Rows are divided by their largest value before, and
    products multiplied by it afterwards: a scale per row, which ONNX Runtime's fast product does not have itself.

    Args:
        model: an ONNX model, changed in place.
        weights: `(K, V)` of products, by name, of which each output gets a scale.
        largest: the largest int8 weight.
    """
    onnx = import_runtime("onnx", "onnx")
    graph = model.graph
    for name, matrix in weights.items():
        store_rows(graph, name, np.ascontiguousarray(matrix.T), largest)
    constants = {
        "int8_step": np.array(1 / _LARGEST, np.float32),
        "int8_zero": np.array(_ZERO, np.uint8),
        "int8_last": np.array([-1]),
        "int8_columns": np.array([1]),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    nodes = []
    for node in graph.node:
        is_product = node.op_type == "MatMul" and node.input[1] in weights
        nodes += _product(node) if is_product else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    if not any(each.domain == "com.microsoft" for each in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def _product(node: Any) -> list[Any]:
    """The nodes in the place of a `MatMul` by weights that [`store_rows`] has stored."""
    onnx = import_runtime("onnx", "onnx")
    (rows, weights), product = node.input, node.output[0]

    def make(operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return onnx.helper.make_node(operator, inputs, [output], f"{output}_{operator}", **attributes)

    def own(name: str) -> str:
        return f"{product}_{name}"

    return [
        make("Abs", [rows], own("sizes")),
        make("ReduceMax", [own("sizes"), "int8_last"], own("scale"), keepdims=1),
        # of a row of zeros no number, which becomes some byte: its product is multiplied by 0
        make("Div", [rows, own("scale")], own("within_one")),
        make("QuantizeLinear", [own("within_one"), "int8_step", "int8_zero"], own("Q8")),
        # constant, and computed once, when the file is opened: tables of the same weights need them the other way
        make("Transpose", [f"{weights}_Q8"], own("weights"), perm=[1, 0]),
        make("Squeeze", [f"{weights}_scales", "int8_columns"], own("weight_scales")),
        make(
            "MatMulIntegerToFloat",
            [own("Q8"), own("weights"), "int8_step", own("weight_scales"), "int8_zero"],
            own("within_scale"),
            domain="com.microsoft",
        ),
        make("Mul", [own("within_scale"), own("scale")], product),
    ]

"""
Channels of a tensor are moved and scaled until each has the whole range, before the tensor gets one scale for all its
bytes: a narrow channel would have few of its steps (Nagel et al., 2019, https://arxiv.org/abs/1906.04721, section
4.1). The weights behind the tensor undo it, so that the model computes what it did.

This is possible where convolutions are only added up before others read them: between the blocks of an EfficientNet or
a MobileNet. A model without such tensors stays as it is.

C: channels of a tensor
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusion_captioner.export.rounding import Product, watched
from fusion_captioner.inference.runtimes import import_runtime

# No channel is widened more: one that is always 0 has no range.
_NARROWEST = 1 / 16
# A channel that reaches far in few images only is cut off there to this share of it at least.
_SHARE_OF_FARTHEST = 1 / 2


class Stream:
    """
    Tensors with the same channels: outputs of convolutions, and their sums.

    Args:
        tensors: their names, each sum after what it adds up.
        makers: name of a tensor → the node that it comes from, a `Conv` or an `Add`.
        readers: the `Conv` nodes that read them.
    """

    def __init__(self, tensors: list[str], makers: Mapping[str, Any], readers: list[Any]) -> None:
        self.tensors = tensors
        self.makers = makers
        self.readers = readers

    def centers(self, lowest: Mapping[str, np.ndarray], highest: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Name of a tensor → by how much its channels are moved, `(C,)`: sums by what they add up."""
        moved: dict[str, np.ndarray] = {}
        for name in self.tensors:
            maker = self.makers[name]
            if maker.op_type == "Conv":
                moved[name] = (lowest[name] + highest[name]) / 2
            else:
                moved[name] = moved[maker.input[0]] + moved[maker.input[1]]
        return moved

    def widths(
        self, centers: Mapping[str, np.ndarray], lowest: Mapping[str, np.ndarray], highest: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """How far each channel reaches from its centre, as a share of the widest one's reach, `(C,)`: the largest of
        all tensors."""
        shares = []
        for name in self.tensors:
            reach = np.maximum(highest[name] - centers[name], centers[name] - lowest[name])
            shares.append(reach / max(reach.max(), 1e-12))
        return np.max(shares, axis=0)


def find_streams(model: Any) -> list[Stream]:
    """Those of an ONNX model of which all tensors are read by sums and convolutions of single pixels alone."""
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return []  # graphs within, as those of `If`, read tensors that no input names
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    outputs = {tensor.name for tensor in graph.output}
    makers: dict[str, Any] = {}
    channels: dict[str, int] = {}
    group_of: dict[str, int] = {}
    for node in graph.node:  # in the order of computation
        name = node.output[0]
        if _is_own_convolution(node, shapes, uses):
            makers[name], channels[name], group_of[name] = node, shapes[node.input[1]][0], len(group_of)
        elif (
            node.op_type == "Add"
            and all(each in channels for each in node.input)
            and len({channels[each] for each in node.input}) == 1
        ):
            first, second = (group_of[each] for each in node.input)
            group_of = {each: first if group == second else group for each, group in group_of.items()}
            makers[name], channels[name], group_of[name] = node, channels[node.input[0]], first
    readers: dict[int, list[Any]] = {group: [] for group in group_of.values()}
    left = {group_of[name] for name in outputs & set(group_of)}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name not in group_of or (node.op_type == "Add" and node.output[0] in makers):
                continue
            if place == 0 and _is_own_convolution(node, shapes, uses) and _reads_single_pixels(node, shapes):
                readers[group_of[name]].append(node)
            else:
                left.add(group_of[name])
    return [
        Stream([name for name in makers if group_of[name] == group], makers, nodes)
        for group, nodes in readers.items()
        if nodes and group not in left
    ]


def _is_own_convolution(node: Any, shapes: Mapping[str, tuple[int, ...]], uses: Mapping[str, int]) -> bool:
    """In two dimensions, with constant weights and a bias that no other node has."""
    return (
        node.op_type == "Conv"
        and len(node.input) == 3
        and all(name in shapes and uses[name] == 1 for name in node.input[1:])
        and len(shapes[node.input[1]]) == 4
    )


def _reads_single_pixels(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    product = Product(node, shapes[node.input[1]])
    return product.groups == 1 and set(product.window) == {1} and not np.any(product.padding)


def equalize_channels(path: Path, images: Iterable[Mapping[str, np.ndarray]]) -> None:
    """
    Args:
        path: of an ONNX file, which is changed.
        images: inputs of the model, an image each, which say how far channels reach.
    """
    onnx = import_runtime("onnx", "onnx")
    model = onnx.load(path)
    streams = find_streams(model)
    names = [name for stream in streams for name in stream.tensors]
    if not names:
        return
    watch, found = watched(model, names), []
    for image in images:
        tensors = watch(image)
        found.append({name: (tensors[name].min((0, 2, 3)), tensors[name].max((0, 2, 3))) for name in names})

    def ends(over_images: Callable[..., np.ndarray], place: int) -> dict[str, np.ndarray]:
        return {name: over_images([each[name][place] for each in found], axis=0) for name in names}

    usual, farthest = (ends(np.mean, 0), ends(np.mean, 1)), (ends(np.min, 0), ends(np.max, 1))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def change(name: str, array: np.ndarray) -> None:
        constants[name].CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), name))

    for stream in streams:
        centers = stream.centers(*usual)
        scale = np.maximum(
            stream.widths(centers, *usual), _SHARE_OF_FARTHEST * stream.widths(centers, *farthest)
        ).clip(_NARROWEST)
        for name in stream.tensors:
            if (maker := stream.makers[name]).op_type == "Conv":
                weights, bias = (onnx.numpy_helper.to_array(constants[each]) for each in maker.input[1:])
                change(maker.input[1], weights / scale[:, None, None, None])
                change(maker.input[2], (bias - centers[name]) / scale)
        for reader in stream.readers:
            weights, bias = (onnx.numpy_helper.to_array(constants[each]) for each in reader.input[1:])
            change(reader.input[1], weights * scale[:, None, None])
            change(reader.input[2], bias + weights[:, :, 0, 0] @ centers[reader.input[0]])
    onnx.save(model, path)

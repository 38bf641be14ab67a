"""
What a model computes once per image, made fast for inference alone: convolution, batch normalisation and activation in
one call of oneDNN, and the type that is faster on this machine.

B: images, C: channels, H, W: pixels
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fusion_captioner import causal_layers
from fusion_captioner.hardware import faster_dtype
from fusion_captioner.image_encoder import ImageEncoder

# oneDNN's name of an activation, and its numbers.
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}
# Convolutions that stay float32 in any case: what they round, all others see.
FIRST_LAYERS = 3
# Folded weights round otherwise; a larger share of the regions' norm means that something else is computed.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2}


class FusedConvolution(nn.Module):
    """
    A convolution, the batch normalisation and the activation behind it, on packed weights. Images are brought to the
    weights' type. A convolution of single pixels is a matrix product over them: as fast for many images, and for one
    image faster than oneDNN's convolution, which in bfloat16 can be far slower.

    Args:
        convolution (`nn.Conv2d`), normalization (`nn.BatchNorm2d`): in evaluation mode, on a CPU.
        activation (`nn.Module`, *optional*): one of `ACTIVATIONS`.
        dtype (`torch.dtype`): of the weights.
    """

    def __init__(
        self, convolution: nn.Conv2d, normalization: nn.BatchNorm2d, activation: nn.Module | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.dtype = dtype
        folded: Any = fuse_conv_bn_eval(convolution, normalization)
        padding = folded._reversed_padding_repeated_twice[::-2]  # rows, columns
        self.settings = (padding, list(folded.stride), list(folded.dilation), folded.groups)
        weight = folded.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.is_product = {*weight.shape[2:], folded.groups} == {1} and not any(padding)
        if self.is_product:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1))
        else:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.settings)
        # A parameter, since `model.device` reads the first one; without any here it would walk through all layers.
        self.bias = nn.Parameter(folded.bias.detach().to(dtype), requires_grad=False)
        name, numbers = ("none", []) if activation is None else ACTIVATIONS[type(activation)]
        self.activation = (name, numbers, "")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "FusedConvolution":
        """Packed weights keep their type and place, and so does the bias."""
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` → `(B, C', H', W')`"""
        images = images.to(self.dtype)
        if self.is_product:
            down, across = self.settings[1]
            pixels = images.permute(0, 2, 3, 1)
            if (down, across) != (1, 1):
                pixels = pixels[:, ::down, ::across]
            products = torch.ops.mkldnn._linear_pointwise(pixels, self.weight, self.bias, *self.activation)
            return products.permute(0, 3, 1, 2)
        return torch.ops.mkldnn._convolution_pointwise(
            images, self.weight, self.bias, *self.settings, *self.activation
        )


def quicken_encoder(model: Any, dtype: str = "auto") -> torch.dtype:
    """
    Make all that a model computes once per image fast on this machine, for inference alone: the image encoder, the
    concepts, and what the fusion needs of the regions.

    Args:
        model: a model of the package; it is changed in place.
        dtype: of what is computed once per image: `"float32"`, `"bfloat16"`, or `"auto"`, which is what
            [`faster_dtype`] finds. Results are float32 again, and the rest of the model stays in float32: the decoder
            would gain little, and rounding errors would add up in its states. A checkpoint that has another type keeps
            it, except in the image encoder.

    Returns:
        the type, `"auto"` resolved.
    """
    base, encoder = model.model, model.model.image_encoder
    device = next(encoder.parameters()).device.type  # a machine with a GPU may caption on its processor
    found: torch.dtype = faster_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    is_fused = fuse_convolutions(encoder, found)
    if found != torch.float32:
        if not is_fused:
            encoder.to(found)
        encoder.forward = partial(_encode, encoder.forward)
        for name in ("score_concepts", "project_regions"):
            setattr(base, name, partial(_compute_in, found, base, name))
    return found


def _encode(forward: Callable[[torch.Tensor], torch.Tensor], pixel_values: torch.Tensor) -> torch.Tensor:
    """Regions in float32."""
    return forward(pixel_values).float()


def _compute_in(dtype: torch.dtype, base: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """
    What the method `name` of a base model returns, its products computed in `dtype`, as float32. A model of another
    type than float32 computes in its own, and so does an export.
    """
    method = getattr(type(base), name)
    if base.fusion_dtype != torch.float32 or torch.compiler.is_exporting():
        return method(base, *args, **kwargs)
    with torch.autocast(base.device.type, dtype):
        found = method(base, *args, **kwargs)
    if isinstance(found, tuple):
        return tuple(each.float() for each in found)
    return None if found is None else found.float()


@torch.no_grad()
def fuse_convolutions(encoder: ImageEncoder, dtype: torch.dtype = torch.float32) -> bool:
    """
    Replace each convolution that batch normalisation follows, and the activation behind it, by one
    [`FusedConvolution`]. The encoder then computes the same faster, on CPUs, and cannot be trained any more.

    What follows what is seen in a pass over a random image. That nothing else reads what lies between, a second pass
    tells: an encoder that would then compute something else, or nothing, stays as it is.

    Args:
        encoder: changed in place.
        dtype: of all convolutions that are fused but the first `FIRST_LAYERS`.

    Returns:
        whether anything was fused.
    """
    weights = list(encoder.parameters())
    is_able = causal_layers.CAN_PACK and causal_layers.can_be_multiplied(dtype)
    if not is_able or any(each.device.type != "cpu" or each.dtype != torch.float32 for each in weights):
        return False
    encoder.eval()
    pixel_values = torch.rand(1, 3, *encoder.image_size, generator=torch.Generator().manual_seed(0))
    expected, calls = _watched(encoder, pixel_values)
    replaced: dict[str, nn.Module] = {}
    for name, normalization, given, normalized in calls:
        behind = [call for call in calls if call[2] == normalized and type(call[1]) in ACTIVATIONS]
        before = [call for call in calls if call[3] == given and type(call[1]).forward is nn.Conv2d.forward]
        if not (isinstance(normalization, nn.BatchNorm2d) and before and _can_be_fused(before[0][1])):
            continue
        activation = behind[0] if len(behind) == 1 else (None, None)
        replaced |= {name: nn.Identity()} | ({activation[0]: nn.Identity()} if activation[0] else {})
        convolution_name, convolution = before[0][:2]
        kept = sum(isinstance(layer, FusedConvolution) for layer in replaced.values()) < FIRST_LAYERS
        own_dtype = torch.float32 if kept else dtype
        replaced[convolution_name] = FusedConvolution(convolution, normalization, activation[1], own_dtype)
    plain = {name: encoder.get_submodule(name) for name in replaced}
    _set(encoder, replaced)
    try:
        difference = (encoder(pixel_values) - expected).norm() / expected.norm()
    except (AttributeError, RuntimeError):  # it reads what a convolution has, or mixes types, as gates do
        difference = torch.inf
    if not difference < TOLERANCES[dtype]:
        _set(encoder, plain)
        return False
    return bool(replaced)


def _can_be_fused(convolution: Any) -> bool:
    left, right, top, bottom = convolution._reversed_padding_repeated_twice
    return convolution.padding_mode == "zeros" and (left, top) == (right, bottom)


def _watched(encoder: ImageEncoder, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[tuple]]:
    """What the encoder gives, and the calls of its layers that are called once: name, layer, marks of input and
    output."""
    calls: list[tuple] = []
    seen: list[torch.Tensor] = []  # kept, so that no other tensor takes the place of one

    def mark(tensor: torch.Tensor) -> tuple[int, int]:
        seen.append(tensor)
        return id(tensor), tensor._version  # which operations in place count up

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls.append((names[layer], layer, mark(inputs[0]), mark(output)))

    names = {layer: name for name, layer in encoder.named_modules() if not list(layer.children())}
    hooks = [layer.register_forward_hook(note) for layer in names]
    try:
        regions = encoder(pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    layers = [layer for _, layer, _, _ in calls]
    return regions, [call for call in calls if layers.count(call[1]) == 1]


def _set(encoder: ImageEncoder, layers: dict[str, nn.Module]) -> None:
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, layer)

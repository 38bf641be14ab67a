"""
Matrix products of a few rows on packed weights, for as long as one call of `generate` runs.

A step of generation multiplies one row per beam by every weight of the decoder. On CPUs the kernel behind `nn.Linear`
is made for many rows; with a few it is faster on weights that are laid out for it. `benchmarks/packed_linear.py`
measures by how much. No copy outlives the call, so that no change of a weight can be missed.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

# With fewer rows the usual kernel is as fast, with more it is as well.
MIN_ROWS, MAX_ROWS = 4, 192
# A smaller weight fits into a core's own cache, and there is nothing to gain.
MIN_WEIGHTS = 2**16

_IS_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Weights that may be packed in this call: `None` before their first use, then themselves, then the packed copy.
_PACKED: ContextVar[dict[torch.Tensor, torch.Tensor | None] | None] = ContextVar("packed", default=None)


@contextmanager
def packed_weights(modules: Iterable[nn.Module]) -> Iterator[None]:
    """
    Inside, linear and recurrent layers within `modules` multiply few rows by packed copies of their weights. A copy is
    made at a weight's second use: what is used once, as projections of an image are, is not worth it. Under autocast
    the copy has the type of autocast, and so half the bytes to read at each step.

    The weights must not change inside. Weights that are quantised, offloaded or not on a CPU are left alone.
    """
    layers = [layer for module in modules for layer in module.modules()]
    linears = [layer for layer in layers if type(layer) in (nn.Linear, PackedLinear)]
    recurrents = [layer for layer in layers if type(layer) in (nn.LSTM, nn.GRU)]
    parameters = (parameter for layer in (*linears, *recurrents) for parameter in layer.parameters(recurse=False))
    weights: dict[torch.Tensor, torch.Tensor | None] = {
        weight: None for weight in parameters if _can_be_packed(weight)
    }
    token = _PACKED.set(weights)
    # at rest the layers are torch's own, which tools for quantisation look for by their exact type
    linears = [layer for layer in linears if type(layer) is nn.Linear and layer.weight in weights]
    for layer in linears:
        layer.__class__ = PackedLinear
    try:
        yield
    finally:
        for layer in linears:
            layer.__class__ = nn.Linear
        _PACKED.reset(token)


def _can_be_packed(parameter: nn.Parameter) -> bool:
    return (
        _IS_AVAILABLE
        and type(parameter) is nn.Parameter  # quantised weights are of other types
        and parameter.device.type == "cpu"
        and parameter.dim() == 2
        and parameter.numel() >= MIN_WEIGHTS
        and _can_be_multiplied(parameter.dtype)
    )


def _can_be_multiplied(dtype: torch.dtype) -> bool:
    """Whether packed weights of this type can be multiplied on this processor."""
    is_bfloat16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or is_bfloat16


def few_row_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """
    `nn.functional.linear`, for a few rows by the packed copy of the weight where [`packed_weights`] allows one.

    Args:
        inputs (`torch.FloatTensor` of shape `(..., input_size)`).
        weight (`torch.FloatTensor` of shape `(output_size, input_size)`).
        bias (`torch.FloatTensor` of shape `(output_size,)`, *optional*).
    """
    # first of all, so that a compiler sees nothing of the rest
    weights = None if torch.compiler.is_compiling() else _PACKED.get()
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    if (
        weights is None
        or weight not in weights
        or torch.is_grad_enabled()
        or (dtype != weight.dtype and not _can_be_multiplied(dtype))
        or (inputs.dtype != weight.dtype and inputs.dtype != dtype)
        or not MIN_ROWS * inputs.shape[-1] <= inputs.numel() <= MAX_ROWS * inputs.shape[-1]
    ):
        return nn.functional.linear(inputs, weight, bias)
    packed = weights[weight]
    if packed is None:
        weights[weight] = weight
        return nn.functional.linear(inputs, weight, bias)
    if packed is weight or packed.dtype != dtype:
        packed = weights[weight] = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype))
    rows = inputs.reshape(-1, inputs.shape[-1]).to(dtype)
    bias = None if bias is None else bias.to(dtype)
    outputs = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return outputs.view(*inputs.shape[:-1], -1)


class PackedLinear(nn.Linear):
    """What an `nn.Linear` is inside [`packed_weights`]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return few_row_linear(input, self.weight, self.bias)

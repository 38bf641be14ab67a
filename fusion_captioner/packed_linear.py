"""
Matrix products of a few rows, as in generation, on weights packed for them.

A step of generation multiplies one row a beam by every weight of the decoder. On CPUs the kernel behind `nn.Linear` is
made for many rows: with a few it reads the weights at a fraction of the memory's speed. `benchmarks/packed_linear.py`
measures by how much.
"""

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

# With more rows than these the usual kernel is as fast.
MAX_ROWS = 192
# Below this a weight fits into a core's own cache, and there is nothing to gain.
MIN_WEIGHTS = 2**16

# Weight → its version and address when it was packed, and its packed copy; it goes when the weight goes.
_PACKED = WeakIdKeyDictionary()
# Fused optimisers, `Trainer`'s default among them, change weights and leave their version as it was.
register_optimizer_step_post_hook(lambda *_: _PACKED.clear())
_IS_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def few_row_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """
    `nn.functional.linear`; for a few rows in float32 on a CPU, when no gradient is wanted, by packed weights.

    The packed copy is made at the first use and again when the weight has changed.

    Args:
        inputs (`torch.FloatTensor` of shape `(..., input_size)`).
        weight (`torch.FloatTensor` of shape `(output_size, input_size)`).
        bias (`torch.FloatTensor` of shape `(output_size,)`, *optional*).
    """
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or not _IS_AVAILABLE
        or inputs.device.type != "cpu"
        or inputs.dtype != torch.float32
        or weight.dtype != torch.float32
        or weight.is_inference()  # nothing would tell that it has changed
        or inputs.numel() > MAX_ROWS * inputs.shape[-1]
        or inputs.numel() == 0
        or weight.numel() < MIN_WEIGHTS
        or torch.is_autocast_enabled("cpu")
    ):
        return nn.functional.linear(inputs, weight, bias)
    state = (weight._version, weight.data_ptr())
    packed = _PACKED.get(weight)
    if packed is None or packed[0] != state:
        packed = (state, torch.ops.mkldnn._reorder_linear_weight(weight.detach()))
        _PACKED[weight] = packed
    rows = inputs.reshape(-1, inputs.shape[-1])
    outputs = torch.ops.mkldnn._linear_pointwise(rows, packed[1], bias, "none", [], "")
    return outputs.view(*inputs.shape[:-1], -1)


class FewRowLinear(nn.Linear):
    """`nn.Linear` by [`few_row_linear`]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return few_row_linear(input, self.weight, self.bias)

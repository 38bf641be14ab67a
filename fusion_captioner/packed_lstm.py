"""
An LSTM layer over packed texts, for training on CPUs.

PyTorch's own goes backward in float32 whatever it went forward in, and computes padding. Here both ways multiply in
the type of autocast, and read tokens only; gates and memory are float32 at least.

N: tokens of all texts, step by step as in `torch.nn.utils.rnn.PackedSequence`, I: inputs, D: hidden size
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.autograd.function import once_differentiable


class LSTMLayer(torch.autograd.Function):
    """
    The equations of Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000), called by `apply`.

    Args:
        inputs (`torch.FloatTensor` of shape `(N, I)`).
        sizes (sequence of `int`): how many texts have a first token, a second one and so on; they add up to N.
        input_weight, hidden_weight, input_bias, hidden_bias (`torch.FloatTensor`): as `nn.LSTM` has them.

    Returns:
        outputs of shape `(N, D)`, in the type of the inputs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        sizes: Sequence[int],
        input_weight: torch.Tensor,
        hidden_weight: torch.Tensor,
        input_bias: torch.Tensor,
        hidden_bias: torch.Tensor,
    ) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype
        rows = inputs.to(dtype)
        # copies, since a product's last bit depends on where weights lie, and loaded ones lie anywhere
        input_weight, hidden_weight = (each.to(dtype, copy=True) for each in (input_weight, hidden_weight))
        of_inputs = torch.addmm((input_bias + hidden_bias).to(dtype), rows, input_weight.t())
        size = hidden_weight.shape[1]
        gates = rows.new_empty(len(rows), 4, size, dtype=torch.promote_types(dtype, torch.float32))
        memory, shown_memory = (gates.new_empty(len(rows), size) for _ in range(2))
        outputs = rows.new_empty(len(rows), size)
        before = 0  # where the step before begins
        for start, end in pairwise(accumulate(sizes, initial=0)):
            earlier = slice(before, before + end - start)
            of_gates = of_inputs[start:end]
            if start:
                of_gates = of_gates.addmm(outputs[earlier], hidden_weight.t())
            gate = gates[start:end].copy_(of_gates.view(-1, 4, size))
            gate[:, :2].sigmoid_()
            gate[:, 2].tanh_()
            gate[:, 3].sigmoid_()
            entered, kept, candidate, shown = gate.unbind(dim=1)
            torch.mul(entered, candidate, out=memory[start:end])
            if start:
                memory[start:end].addcmul_(kept, memory[earlier])
            torch.tanh(memory[start:end], out=shown_memory[start:end])
            outputs[start:end] = shown * shown_memory[start:end]
            before = start
        ctx.sizes = sizes
        ctx.save_for_backward(rows, input_weight, hidden_weight, gates, memory, shown_memory, outputs)
        return outputs.to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, input_weight, hidden_weight, gates, memory, shown_memory, outputs = ctx.saved_tensors
        sizes, first = ctx.sizes, ctx.sizes[0]
        spans = list(pairwise(accumulate(sizes, initial=0)))
        # for each token but the first ones of the texts the token before it
        before = torch.cat([torch.arange(0), *(torch.arange(n) + start for (start, _), n in zip(spans, sizes[1:]))])
        entered, kept, candidate, shown = gates.unbind(dim=1)
        # the derivatives: of the memory by what the gates are sums of, of the output by its gate's sum, by the memory
        slopes = torch.empty_like(gates)
        torch.mul(entered, 1 - entered, out=slopes[:, 0]).mul_(candidate)
        torch.mul(kept[first:], 1 - kept[first:], out=slopes[first:, 1]).mul_(memory[before])
        slopes[:first, 1] = 0
        torch.mul(entered, 1 - candidate.square(), out=slopes[:, 2])
        torch.mul(shown, 1 - shown, out=slopes[:, 3]).mul_(shown_memory)
        of_memory = shown * (1 - shown_memory.square())
        of_gates = rows.new_empty(gates.shape)
        later = None  # the step after, and the gradient of its memory
        for start, end in reversed(spans):
            of_output = gradient[start:end].to(gates.dtype)
            if later is None:
                by_memory = of_output * of_memory[start:end]
            else:
                step, by_later_memory = later
                of_output = of_output.clone()
                count = len(by_later_memory)
                of_output[:count] += of_gates[step].flatten(1) @ hidden_weight
                by_memory = of_output * of_memory[start:end]
                by_memory[:count].addcmul_(by_later_memory, kept[step])
            of_gates[start:end, :3] = by_memory.unsqueeze(1) * slopes[start:end, :3]
            of_gates[start:end, 3] = of_output * slopes[start:end, 3]
            later = slice(start, end), by_memory
        of_gates = of_gates.flatten(1)
        of_bias = of_gates.sum(dim=0, dtype=gates.dtype) if any(ctx.needs_input_grad[4:]) else None
        return (
            of_gates @ input_weight if ctx.needs_input_grad[0] else None,
            None,
            of_gates.t() @ rows if ctx.needs_input_grad[2] else None,
            of_gates[first:].t() @ outputs[before] if ctx.needs_input_grad[3] else None,
            of_bias,
            of_bias,
        )

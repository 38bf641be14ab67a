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

sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward


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
        size, exact = hidden_weight.shape[1], torch.promote_types(dtype, torch.float32)
        gates = of_inputs if dtype == exact else torch.empty_like(of_inputs, dtype=exact)
        memory, shown_memory = (gates.new_empty(len(rows), size) for _ in range(2))
        outputs = rows.new_empty(len(rows), size)
        before = 0  # where the step before begins
        for start, end in pairwise(accumulate(sizes, initial=0)):
            earlier = slice(before, before + end - start)
            gate, of_gate = gates[start:end], of_inputs[start:end]
            if start:
                of_gate = of_gate.addmm_(outputs[earlier], hidden_weight.t())
            if gates is not of_inputs:
                gate.copy_(of_gate)
            gate[:, : 2 * size].sigmoid_()
            gate[:, 2 * size : 3 * size].tanh_()
            gate[:, 3 * size :].sigmoid_()
            entered, kept, candidate, shown = gate.chunk(4, dim=1)
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
        spans = list(pairwise(accumulate(ctx.sizes, initial=0)))
        of_gates = rows.new_empty(gates.shape)
        later = None  # the step after, and what it adds to the gradient of this one's memory
        # one step after the other, so that the processor's cache holds what a step needs
        for index in reversed(range(len(spans))):
            start, end = spans[index]
            entered, kept, candidate, shown = gates[start:end].chunk(4, dim=1)
            of_entered, of_kept, of_candidate, of_shown = of_gates[start:end].chunk(4, dim=1)
            of_output = gradient[start:end].to(gates.dtype, copy=True)
            if later is not None:
                step, of_memory = later
                of_output[: len(of_memory)] += of_gates[step] @ hidden_weight
            of_shown.copy_(sigmoid_backward(of_output * shown_memory[start:end], shown))
            by_memory = tanh_backward(of_output * shown, shown_memory[start:end])
            if later is not None:
                by_memory[: len(of_memory)] += of_memory
            of_entered.copy_(sigmoid_backward(by_memory * candidate, entered))
            of_candidate.copy_(tanh_backward(by_memory * entered, candidate))
            if index:
                before = spans[index - 1][0]
                of_kept.copy_(sigmoid_backward(by_memory * memory[before : before + end - start], kept))
                later = slice(start, end), by_memory * kept
            else:
                of_kept.zero_()  # there was nothing to keep
        # for each token but the first ones of the texts the token before it
        earlier = [torch.arange(before, before + end - start) for (before, _), (start, end) in pairwise(spans)]
        places = torch.cat([torch.arange(0), *earlier])
        of_bias = of_gates.sum(dim=0, dtype=gates.dtype) if any(ctx.needs_input_grad[4:]) else None
        return (
            of_gates @ input_weight if ctx.needs_input_grad[0] else None,
            None,
            of_gates.t() @ rows if ctx.needs_input_grad[2] else None,
            of_gates[ctx.sizes[0] :].t() @ outputs[places] if ctx.needs_input_grad[3] else None,
            of_bias,
            of_bias,
        )

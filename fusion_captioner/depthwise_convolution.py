"""
Depthwise convolutions whose gradients are fast in bfloat16 on CPUs.

oneDNN has no depthwise kernel for two of the gradients that training needs, and computes them as if every channel met
every other: that of the input with a stride, in bfloat16, and that of a kernel wider than 3, in any type. In training
EfficientNet-Lite2 under autocast these took three quarters of the time.

B: batch, C: channels, H, W: pixels, h, w: pixels of the output, K: side of the kernel
"""

import torch
from torch import nn

# Widest kernel whose gradient has a depthwise kernel.
WIDTH = 3


class DepthwiseConv2d(nn.Conv2d):
    """What [`use_fast_gradients`] makes of an `nn.Conv2d` with one kernel per channel. It differs in training in
    bfloat16 on a CPU only."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        if (
            dtype != torch.bfloat16
            or input.device.type != "cpu"
            or not torch.is_grad_enabled()
            or torch.compiler.is_compiling()
        ):
            return super().forward(input)
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if (left, top) != (right, bottom):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Convolution.apply(input.to(dtype), self.weight.to(dtype), bias, self.stride, (top, left))


def use_fast_gradients(module: nn.Module) -> None:
    """Make every depthwise convolution within `module` a [`DepthwiseConv2d`], the same layer otherwise."""
    for layer in module.modules():
        if (
            isinstance(layer, nn.Conv2d)
            and type(layer).forward is nn.Conv2d.forward
            and 1 < layer.groups == layer.in_channels == layer.out_channels
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and min(layer.kernel_size) >= WIDTH
        ):
            layer.__class__ = DepthwiseConv2d


class _Convolution(torch.autograd.Function):
    """`(B, C, H, W)` with kernels `(C, 1, K, K)` → `(B, C, h, w)`, all in bfloat16."""

    @staticmethod
    def forward(ctx, inputs, weight, bias, stride, padding):
        ctx.save_for_backward(inputs, weight)
        ctx.stride, ctx.padding = stride, padding
        return nn.functional.conv2d(inputs, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx, *grad_outputs):
        inputs, weight = ctx.saved_tensors
        grad_output = grad_outputs[0].contiguous(memory_format=torch.channels_last)
        of_inputs = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_inputs = _input_gradient(grad_output, inputs, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(grad_output, inputs, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = grad_output.sum(dim=(0, 2, 3))
        return of_inputs, of_weight, of_bias, None, None


def _input_gradient(grad_output, inputs, weight, stride, padding):
    height, width = weight.shape[2:]
    if stride == (1, 1) and padding[0] < height and padding[1] < width:
        # the convolution with the kernels turned round
        around = (height - 1 - padding[0], width - 1 - padding[1])
        return nn.functional.conv2d(grad_output, weight.flip(2, 3), None, 1, around, groups=len(weight))
    # With a stride of two, inputs in even rows meet other rows of the kernel than those in odd rows, and likewise for
    # columns: each kind has a kernel of its own, without stride.
    (rows, columns), (top, left) = inputs.shape[2:], padding
    shape = (*inputs.shape[:2], rows + 2 * top, columns + 2 * left)
    gradient = torch.empty(shape, dtype=grad_output.dtype, memory_format=torch.channels_last).zero_()
    for row in range(min(stride[0], height)):
        for column in range(min(stride[1], width)):
            kernel = weight[:, :, row :: stride[0], column :: stride[1]].flip(2, 3)
            around = (kernel.shape[2] - 1, kernel.shape[3] - 1)
            part = nn.functional.conv2d(grad_output, kernel, None, 1, around, groups=len(weight))
            gradient[:, :, row :: stride[0], column :: stride[1]][:, :, : part.shape[2], : part.shape[3]] = part
    return gradient[:, :, top : top + rows, left : left + columns]


def _weight_gradient(grad_output, inputs, weight, stride, padding):
    """Block by block of the kernel: each is the gradient of a small kernel over inputs that are shifted."""
    height, width = weight.shape[2:]
    if max(height, width) <= WIDTH:
        return _torchs_weight_gradient(grad_output, inputs, weight, stride, padding)
    inputs = nn.functional.pad(inputs, (padding[1], padding[1], padding[0], padding[0]))
    rows, columns = (
        step * (size - 1) + WIDTH for step, size in zip(stride, grad_output.shape[2:], strict=True)
    )  # of the inputs that a block meets
    block = weight[:, :, :WIDTH, :WIDTH].contiguous()
    gradient = torch.empty_like(weight)
    for top in _block_starts(height):
        for left in _block_starts(width):
            met = inputs[:, :, top : top + rows, left : left + columns].contiguous(memory_format=torch.channels_last)
            of_block = _torchs_weight_gradient(grad_output, met, block, stride, (0, 0))
            gradient[:, :, top : top + WIDTH, left : left + WIDTH] = of_block
    return gradient


def _block_starts(side: int) -> list[int]:
    """Where blocks begin that cover a side of the kernel; the last one ends with it."""
    return [*range(0, side - WIDTH, WIDTH), side - WIDTH]


def _torchs_weight_gradient(grad_output, inputs, weight, stride, padding):
    """As torch computes it."""
    return torch.ops.aten.convolution_backward(
        grad_output, inputs, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), (False, True, False)
    )[1]

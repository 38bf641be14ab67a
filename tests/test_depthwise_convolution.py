"""Depthwise convolutions: the gradients are those of torch, in the rounding of bfloat16."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fusion_captioner.depthwise_convolution import DepthwiseConv2d, _block_starts, _Convolution, use_fast_gradients


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the convolutions that take their gradients from here."""
    counted: list[int] = []
    apply = _Convolution.apply
    monkeypatch.setattr(_Convolution, "apply", lambda *given: (counted.append(1), apply(*given))[1])
    return counted


def convolution(kernel: int | tuple[int, int], **fields) -> nn.Conv2d:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, kernel, groups=16, **fields)
    use_fast_gradients(layer)
    assert type(layer) is DepthwiseConv2d
    return layer


def gradients(layer: nn.Module, bf16: bool, inputs: torch.Tensor, reentrant: bool | None = None) -> list[torch.Tensor]:
    inputs = inputs.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        outputs = layer(inputs) if reentrant is None else checkpoint(layer, inputs, use_reentrant=reentrant)
    (outputs.float() * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum().backward()
    assert outputs.dtype == (torch.bfloat16 if bf16 else torch.float32)
    return [outputs.detach().float(), inputs.grad, *(weight.grad for weight in layer.parameters())]


@pytest.mark.parametrize(
    ("kernel", "fields"),
    [
        (3, {"padding": 1}),
        (5, {"padding": "same"}),
        (5, {"stride": 2, "bias": False}),
        (3, {"stride": 2, "padding": 1}),
        (7, {"padding": 3}),
        (4, {"padding": 2}),
        ((3, 6), {"stride": (1, 2), "padding": (0, 1)}),
        (3, {"padding": 4}),
        (3, {"stride": (4, 2), "padding": (0, 4)}),  # rows that no kernel meets
        (5, {"stride": 3, "padding": 2}),
    ],
)
def test_gradients_are_those_of_single_precision(calls: list[int], kernel, fields: dict) -> None:
    layer, inputs = convolution(kernel, **fields), torch.randn(2, 16, 13, 11)
    expected = gradients(layer, False, inputs)
    assert calls == []
    found = gradients(layer, True, inputs)
    assert calls == [1]
    for each, reference in zip(found, expected, strict=True):
        assert each.dtype == torch.float32
        assert (each - reference).norm() < 0.02 * reference.norm()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_computes_the_same(calls: list[int], reentrant: bool) -> None:
    layer, inputs = convolution(5, padding=2), torch.randn(2, 16, 8, 8)
    expected, found = gradients(layer, True, inputs), gradients(layer, True, inputs, reentrant)
    assert len(calls) == (2 if reentrant else 3)  # the first pass of the reentrant form has no gradients
    for each, reference in zip(found, expected, strict=True):
        assert torch.equal(each, reference)


def test_other_layers_and_inference_are_left_alone(calls: list[int]) -> None:
    others = [
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 32, 3, groups=16),
        nn.Conv2d(16, 16, 1, groups=16),
        nn.Conv2d(16, 16, 3, groups=16, dilation=2),
        nn.Conv2d(16, 16, 3, groups=16, padding=1, padding_mode="reflect"),
    ]
    use_fast_gradients(nn.ModuleList(others))
    assert {type(layer) for layer in others} == {nn.Conv2d}
    layer, inputs = convolution(3), torch.randn(1, 16, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
    # one more column on one side only, which torch pads by itself
    even = convolution((3, 4), padding="same")
    with torch.autocast("cpu", torch.bfloat16):
        assert even(inputs).shape == inputs.shape
    assert calls == []


@pytest.mark.parametrize("side", range(3, 12))
def test_blocks_cover_every_weight_and_end_with_the_kernel(side: int) -> None:
    starts = _block_starts(side)
    assert {start + place for start in starts for place in range(3)} == set(range(side))

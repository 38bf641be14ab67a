import copy

import pytest
import torch
from torch import nn

from fusion_captioner import packed_linear
from fusion_captioner.packed_linear import MAX_ROWS, FewRowLinear, few_row_linear

pytestmark = pytest.mark.skipif(not packed_linear._IS_AVAILABLE, reason="this build of torch has no packed products")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that were multiplied by packed weights."""
    shapes: list[tuple[int, ...]] = []
    operators = torch.ops.mkldnn

    class Watched:
        _reorder_linear_weight = operators._reorder_linear_weight

        @staticmethod
        def _linear_pointwise(inputs, *arguments):
            shapes.append(tuple(inputs.shape))
            return operators._linear_pointwise(inputs, *arguments)

    monkeypatch.setattr(torch.ops, "mkldnn", Watched)
    return shapes


def layer(bias: bool = True) -> FewRowLinear:
    torch.manual_seed(0)
    return FewRowLinear(256, 512, bias=bias)


@pytest.mark.parametrize("shape", [(1, 256), (3, 1, 256), (2, 5, 256)])
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_give_what_linear_gives(packed: list, shape: tuple[int, ...], bias: bool) -> None:
    module, inputs = layer(bias), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(
            module(inputs), nn.functional.linear(inputs, module.weight, module.bias), atol=1e-5, rtol=1e-5
        )
        strided = torch.randn(4, 3, 256)[:, 1]
        torch.testing.assert_close(
            module(strided), nn.functional.linear(strided, module.weight, module.bias), atol=1e-5, rtol=1e-5
        )
    assert len(packed) == 2


def test_a_changed_weight_is_packed_anew(packed: list) -> None:
    module, inputs = layer(), torch.randn(1, 256)
    for change in (lambda: module.weight.mul_(2), lambda: setattr(module.weight, "data", torch.randn(512, 256))):
        with torch.no_grad():
            module(inputs)
            change()
            expected = nn.functional.linear(inputs, module.weight, module.bias)
            torch.testing.assert_close(module(inputs), expected, atol=1e-5, rtol=1e-5)
    assert len(packed) == 4


@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_an_optimiser_step_packs_anew(packed: list, settings: dict[str, bool]) -> None:
    """The fused one, which `Trainer` takes by default, does not raise the version of the weights."""
    module, inputs = layer(), torch.randn(1, 256)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, **settings)
    for _ in range(2):
        module.weight.grad, module.bias.grad = torch.randn(512, 256), torch.randn(512)
        with torch.no_grad():
            before = module(inputs)
            optimizer.step()
            expected = nn.functional.linear(inputs, module.weight, module.bias)
            assert not torch.allclose(before, expected, atol=1e-2)
            torch.testing.assert_close(module(inputs), expected, atol=1e-5, rtol=1e-5)
    assert len(packed) == 4


def test_training_many_rows_and_other_types_take_the_usual_way(packed: list) -> None:
    module = layer()
    module(torch.randn(1, 256)).sum().backward()
    assert module.weight.grad is not None
    with torch.no_grad():
        module(torch.randn(MAX_ROWS + 1, 256))
        few_row_linear(torch.randn(1, 256).bfloat16(), module.weight.bfloat16(), None)
        with torch.autocast("cpu", torch.bfloat16):
            assert module(torch.randn(1, 256)).dtype == torch.bfloat16
        FewRowLinear(8, 8)(torch.randn(1, 8))
        assert module(torch.randn(0, 256)).shape == (0, 512)
    assert packed == []


def test_packed_copies_go_with_their_weights_and_are_not_copied(packed: list) -> None:
    module = layer()
    with torch.inference_mode():
        module(torch.randn(1, 256))
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.weight.zero_()
        assert twin(torch.randn(1, 256)).equal(twin.bias[None])
    before = len(packed_linear._PACKED)
    del module
    assert len(packed_linear._PACKED) == before - 1

"""Packed weights: the same products, in a call of `generate` only, so that no change of a weight is ever missed."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import pixels, tiny_model
from torch import nn

from fusion_captioner import causal_layers
from fusion_captioner.causal_layers import MAX_ROWS, CausalLSTM, PackedLinear, few_row_linear, packed_weights

pytestmark = pytest.mark.skipif(not causal_layers.CAN_PACK, reason="this build of torch has no packed products")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that were multiplied by packed weights."""
    shapes: list[tuple[int, ...]] = []
    operators = torch.ops.mkldnn

    class Watched:
        _reorder_linear_weight = operators._reorder_linear_weight
        _is_mkldnn_bf16_supported = operators._is_mkldnn_bf16_supported

        @staticmethod
        def _linear_pointwise(inputs, *arguments):
            shapes.append(tuple(inputs.shape))
            return operators._linear_pointwise(inputs, *arguments)

    monkeypatch.setattr(torch.ops, "mkldnn", Watched)
    return shapes


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(256, 512, bias=bias)


@pytest.mark.parametrize("shape", [(2, 256), (4, 1, 256), (2, 5, 256)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_few_rows_give_what_linear_gives(packed: list, shape: tuple[int, ...], bias: bool) -> None:
    module = layer(bias)
    with packed_weights([module]):
        for inputs in (torch.randn(shape), torch.randn(shape), torch.randn(4, 3, 256)[:, 1]):
            expected = nn.functional.linear(inputs, module.weight, module.bias)
            torch.testing.assert_close(module(inputs), expected, atol=1e-5, rtol=1e-5)
    assert len(packed) == 2  # what is used once is not packed


@torch.no_grad()
def test_a_vector_is_left_to_torch(packed: list) -> None:
    module, inputs, kept = layer(), torch.randn(256), {}
    for _ in range(3):
        with packed_weights([module], kept):
            torch.testing.assert_close(module(inputs), nn.functional.linear(inputs, module.weight, module.bias))
    assert packed == []


@torch.no_grad()
def test_kept_copies_serve_further_calls(packed: list) -> None:
    module, inputs, kept = layer(), torch.randn(4, 256), {}
    for _ in range(3):
        with packed_weights([module], kept):
            module(inputs)
    assert len(packed) == 2  # the first use alone was not by the copy
    with packed_weights([module]):
        module(inputs)
    assert len(packed) == 2


@pytest.mark.skipif(not causal_layers.CAN_PACK_HALF, reason="this build of torch multiplies by no float16 weights")
@pytest.mark.parametrize("shape", [(1, 256), (3, 256), (2, 12, 256), (4, 1, 256)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_kept_copies_of_what_float16_holds_are_float16_and_lose_nothing(
    packed: list, shape: tuple[int, ...], bias: bool
) -> None:
    module, inputs, kept = layer(bias).half().float(), torch.randn(shape), {}
    expected = module(inputs)
    for _ in range(3):
        with packed_weights([module], kept):
            torch.testing.assert_close(module(inputs), expected, atol=1e-5, rtol=1e-5)
    assert kept[module.weight].half is not None
    assert packed == []
    for change in (1e-5, torch.inf):  # which float16 does not hold, or makes finite
        module.weight[0] += change
        kept.clear()
        packed.clear()
        for _ in range(3):
            with packed_weights([module], kept):
                expected = nn.functional.linear(inputs, module.weight, module.bias)
                torch.testing.assert_close(module(inputs), expected, atol=1e-5, rtol=1e-5, equal_nan=True)
        assert kept[module.weight].half is None
        assert len(packed) == 2


@torch.no_grad()
def test_layers_that_share_a_weight_keep_their_own_bias(packed: list) -> None:
    first, second = layer().half().float(), layer()
    second.weight = first.weight
    second.bias.add_(1)
    inputs, kept = torch.randn(4, 256), {}
    for _ in range(3):
        with packed_weights([first, second], kept):
            torch.testing.assert_close(second(inputs) - first(inputs), (second.bias - first.bias).expand(4, -1))


@torch.no_grad()
def test_an_lstm_multiplies_input_and_state_at_once_and_by_its_own_weights(packed: list) -> None:
    torch.manual_seed(0)
    first, second = (CausalLSTM(256, 128, 1, 0.0).eval() for _ in range(2))
    second.recurrent.weight_ih_l0 = first.recurrent.weight_ih_l0
    token, state, kept = torch.randn(4, 1, 256), (torch.randn(4, 1, 128), torch.randn(4, 1, 128)), {}
    expected = [module(token, None, state, True) for module in (first, second)]
    for _ in range(3):
        with packed_weights([first, second], kept):
            found = [module(token, None, state, True) for module in (first, second)]
        torch.testing.assert_close(found, expected)
    assert packed == [(4, 256 + 128)] * 3  # of the second, which came at the weight's second use


@torch.no_grad()
def test_bfloat16_weights_are_packed_where_the_processor_multiplies_them(packed: list) -> None:
    module, inputs = layer().bfloat16(), torch.randn(4, 256).bfloat16()
    expected = module(inputs)
    with packed_weights([module]):
        module(inputs)
        torch.testing.assert_close(module(inputs), expected, atol=1e-2, rtol=1e-2)
    assert len(packed) == int(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def test_outside_of_a_call_layers_are_torchs_own_and_nothing_is_packed(packed: list) -> None:
    module = layer()
    with packed_weights([module]):
        assert type(module) is PackedLinear
    with pytest.raises(KeyError), packed_weights([module]):
        raise KeyError
    assert type(module) is nn.Linear
    for _ in range(3):
        module(torch.randn(4, 256))
    assert packed == []
    assert {type(part) for part in tiny_model().modules() if isinstance(part, nn.Linear)} == {nn.Linear}


def test_gradients_other_numbers_of_rows_and_types_take_the_usual_way(packed: list) -> None:
    module, small = layer(), nn.Linear(8, 8)
    with packed_weights([module, small]):
        for _ in range(3):
            module(torch.randn(4, 256)).sum().backward()
            with torch.no_grad():
                module(torch.randn(1, 256))  # packing takes longer than many steps of single rows
                module(torch.randn(MAX_ROWS + 1, 256))
                small(torch.randn(4, 8))
                few_row_linear(torch.randn(4, 256).bfloat16(), module.weight.bfloat16(), None)
                few_row_linear(torch.randn(4, 256).half(), module.weight.half(), None)
                assert module(torch.randn(0, 256)).shape == (0, 512)
    assert module.weight.grad is not None
    assert packed == []


@torch.no_grad()
def test_packed_weights_have_the_type_of_autocast(packed: list) -> None:
    module, inputs = layer(), torch.randn(4, 256)
    single = module(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(inputs)
    with packed_weights([module]):
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                found = module(inputs)
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found, half, atol=0.02, rtol=0.02)
            torch.testing.assert_close(module(inputs), single, atol=1e-5, rtol=1e-5)
    # the first call of six is not packed; without hardware those of autocast are not
    assert len(packed) == (5 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 2)
    assert module.weight.dtype == torch.float32


def test_quantised_and_offloaded_weights_are_left_alone() -> None:
    class Quantised(nn.Parameter):
        pass

    subclassed, offloaded = layer(), layer().to("meta")
    subclassed.weight = Quantised(subclassed.weight.detach())
    with packed_weights([subclassed, offloaded]):
        assert type(subclassed) is nn.Linear
        assert type(offloaded) is nn.Linear


def large_model(**fields):
    """A captioner whose weights are large enough to be packed."""
    return tiny_model(hidden_size=256, vocab_size=300, num_attention_heads=4, **fields)


def logits(model) -> torch.Tensor:
    output = model.generate(
        pixel_values=pixels(4), max_new_tokens=4, min_new_tokens=4, output_logits=True, return_dict_in_generate=True
    )
    return torch.stack(output.logits)


@torch.no_grad()
def change_data(model) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.2)


@torch.no_grad()
def swap_data(model) -> None:
    average = {name: parameter * 0.8 for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data.copy_(average[name])


def scale_the_output_layer(model) -> None:
    model.lm_head.weight.data.add_(0.1)  # tied to the embedding


def load_others(model) -> None:
    model.load_state_dict({name: tensor * 1.1 for name, tensor in model.state_dict().items()})


def step(model) -> None:
    """The fused step, which `Trainer` takes by default, leaves the version of the weights as it was."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def round_to_bfloat16(model) -> None:
    model.to(torch.bfloat16).to(torch.float32)


CHANGES = [change_data, swap_data, scale_the_output_layer, load_others, step, round_to_bfloat16]


@pytest.mark.parametrize("layer_type", ["lstm", "transformer"])
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_weight_the_next_call_uses_it(
    packed: list, change: Callable[[nn.Module], None], layer_type: str
) -> None:
    model = large_model(text_encoder_type=layer_type, decoder_type=layer_type)
    before = logits(model)
    assert packed
    change(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = large_model(text_encoder_type=layer_type, decoder_type=layer_type)
    fresh.load_state_dict(torch.load(buffer))
    after = logits(model)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, logits(fresh), rtol=1e-4, atol=1e-4)
    twin = copy.deepcopy(model)
    scale_the_output_layer(twin)
    assert not torch.allclose(logits(twin), after, atol=1e-2)
    torch.testing.assert_close(logits(model), after)


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_adapters_merged_into_the_weights_are_used(merge: str) -> None:
    model = large_model(fusion_type="concat", tie_word_embeddings=False)
    adapted = get_peft_model(model, LoraConfig(target_modules=["projection", "lm_head"], init_lora_weights=False))
    expected = logits(adapted)
    with adapted.disable_adapter():
        assert not torch.allclose(logits(adapted), expected, atol=1e-2)  # packs the weights without the adapter
    merged = getattr(adapted, merge)() or adapted
    torch.testing.assert_close(logits(merged), expected, rtol=1e-3, atol=1e-3)


def test_gradients_through_generation_are_for_those_who_want_them() -> None:
    model = large_model()
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    assert not model.generate(pixel_values=pixels(4), **options).logits[0].requires_grad
    assert type(model).generate.__wrapped__(model, pixel_values=pixels(4), **options).logits[0].requires_grad

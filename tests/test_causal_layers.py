"""Causal layers: the future and the padding reach nothing, and a text in pieces gives what the whole text gives."""

import pytest
import torch
from tiny_models import LAYER_TYPES, randomize, tiny_config

from fusion_captioner.causal_layers import MIN_GROUP_ROWS, SequenceDropout, attend, build_causal_layers

INPUT_SIZE = 10
RECURRENT = ["lstm", "gru"]


def layers(layer_type: str, num_layers: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    built = build_causal_layers(layer_type, INPUT_SIZE, num_layers, tiny_config()).eval()
    randomize(built)
    return built


def sequence(rows: int = 3, length: int = 7) -> torch.Tensor:
    return torch.randn(rows, length, INPUT_SIZE, generator=torch.Generator().manual_seed(1))


def padded(inputs: torch.Tensor, left: list[int], right: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row of `inputs` cut short by its padding, which is loud: whatever reads it shows."""
    rows, length, _ = inputs.shape
    result, mask = torch.full_like(inputs, 100.0), torch.zeros(rows, length, dtype=torch.long)
    for row, (before, after) in enumerate(zip(left, right)):
        result[row, before : length - after] = inputs[row, : length - before - after]
        mask[row, before : length - after] = 1
    return result, mask


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_outputs_depend_on_the_past_only(layer_type: str) -> None:
    module, inputs = layers(layer_type), sequence()
    changed = inputs.clone()
    changed[:, 4] += 1
    before, after = module(inputs)[0], module(changed)[0]
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert ((before - after)[:, 4:].abs().amax(dim=-1) > 1e-4).all()


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
@pytest.mark.parametrize(("left", "right"), [([0, 2, 5], [0, 0, 0]), ([0, 0, 0], [0, 2, 5]), ([1, 3, 0], [2, 0, 4])])
@pytest.mark.parametrize("return_state", [False, True])
def test_padding_on_either_side_equals_no_padding(
    layer_type: str, left: list[int], right: list[int], return_state: bool
) -> None:
    module, inputs = layers(layer_type), sequence()
    batch, mask = padded(inputs, left, right)
    outputs, state = module(batch, mask, return_state=return_state)
    assert outputs.isfinite().all()
    for row in range(len(inputs)):
        real = mask[row].bool()
        alone, alone_state = module(inputs[row : row + 1, : int(real.sum())], return_state=return_state)
        torch.testing.assert_close(outputs[row, real], alone[0])
        if not return_state:
            assert state is None
        elif layer_type in RECURRENT:
            for tensor, expected in zip(state, alone_state, strict=True):
                torch.testing.assert_close(tensor[row], expected[0])
        else:
            for tensor, expected in zip(state, alone_state, strict=True):
                torch.testing.assert_close(tensor[row][:, real], expected[0])


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_no_gradient_reaches_padding(layer_type: str) -> None:
    batch, mask = padded(sequence(), [0, 2, 0], [0, 0, 3])
    batch.requires_grad_()
    outputs, _ = layers(layer_type)(batch, mask)
    outputs[mask.bool()].square().sum().backward()
    reached = batch.grad.abs().amax(dim=-1) > 0
    assert torch.equal(reached, mask.bool())


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
@pytest.mark.parametrize("chunks", [(7,), (4, 3), (3, 1, 1, 1, 1), (4, 1, 2), (1,) * 7, (2, 2, 2, 1)])
def test_a_text_in_pieces_equals_the_whole(layer_type: str, chunks: tuple[int, ...]) -> None:
    module = layers(layer_type)
    inputs, mask = padded(sequence(), [0, 5, 1], [0, 0, 0])
    whole, whole_state = module(inputs, mask, return_state=True)
    outputs, state, done = [], None, 0
    for length in chunks:
        piece, state = module(inputs[:, done : done + length], mask[:, : done + length], state, return_state=True)
        outputs.append(piece)
        done += length
    real = mask.bool()
    torch.testing.assert_close(torch.cat(outputs, dim=1)[real], whole[real])
    for tensor, expected in zip(state, whole_state, strict=True):
        if layer_type in RECURRENT:
            torch.testing.assert_close(tensor, expected)
        else:
            torch.testing.assert_close(tensor.transpose(1, 2)[real], expected.transpose(1, 2)[real])


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_a_mask_without_padding_changes_nothing(layer_type: str) -> None:
    module, inputs = layers(layer_type), sequence()
    torch.testing.assert_close(module(inputs, torch.ones(3, 7, dtype=torch.long))[0], module(inputs)[0])


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_a_row_of_padding_alone_spoils_no_other_row(layer_type: str) -> None:
    module, inputs = layers(layer_type), sequence()
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1] = 0
    outputs, _ = module(inputs, mask, return_state=True)
    assert outputs.isfinite().all()
    torch.testing.assert_close(outputs[[0, 2]], module(inputs[[0, 2]])[0])


def test_states_have_the_batch_first() -> None:
    config = tiny_config()
    for layer_type, shapes in {
        "lstm": [(3, 2, config.hidden_size)] * 2,
        "gru": [(3, 2, config.hidden_size)],
        "transformer": [(3, config.num_attention_heads, 7, config.hidden_size // config.num_attention_heads)] * 4,
    }.items():
        _, state = layers(layer_type)(sequence(), return_state=True)
        assert [tuple(tensor.shape) for tensor in state] == shapes


def test_a_text_longer_than_the_positions_is_refused() -> None:
    module = layers("transformer", num_layers=1)
    with pytest.raises(ValueError, match=r"41 tokens .*`max_position_embeddings` \(40\)"):
        module(torch.zeros(1, 41, INPUT_SIZE))
    _, state = module(torch.zeros(1, 40, INPUT_SIZE), return_state=True)
    with pytest.raises(ValueError, match="41 tokens"):
        module(torch.zeros(1, 1, INPUT_SIZE), state=state)


@pytest.mark.parametrize("layer_type", RECURRENT)
def test_rows_grouped_by_length_equal_rows_alone(layer_type: str) -> None:
    module = layers(layer_type)
    rows, length = 2 * MIN_GROUP_ROWS + 1, 9
    inputs = sequence(rows, length)
    right = [(3 * row) % length for row in range(rows)]
    batch, mask = padded(inputs, [0] * rows, right)
    outputs, _ = module(batch, mask)
    for row in range(rows):
        real = length - right[row]
        torch.testing.assert_close(outputs[row, :real], module(inputs[row : row + 1, :real])[0][0])


def test_sequence_dropout_hides_the_same_at_every_step() -> None:
    dropout = SequenceDropout(0.4)
    ones = torch.ones(50, 7, 20)
    assert dropout.eval()(ones) is ones
    dropped = dropout.train()(ones)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.6]))
    assert 0.5 < dropped.mean() < 1.5 and not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize("masked", [True, False])
def test_attention_trained_in_half_precision_is_that_of_single(masked: bool) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 4, length, 8) for length in (5, 7, 7)]
    allowed = torch.ones(5, 7).tril(2).bool()[None, None] if masked else None
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in tensors]
        output = attend(*inputs, allowed)
        assert output.dtype == dtype
        output.float().square().sum().backward()
        results.append([output.detach(), *(tensor.grad for tensor in inputs)])
        with torch.no_grad():
            torch.testing.assert_close(attend(*inputs, allowed), output, atol=0.03, rtol=0.03)
    for expected, found in zip(*results, strict=True):
        assert (found.float() - expected).norm() < 0.03 * expected.norm()


def test_attention_drops_weights_in_half_precision_too() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.ones(1, 1, 64, 8).bfloat16().requires_grad_() for _ in range(3))
    output = attend(query, key, value, dropout=0.5)
    assert output.std() > 0.01 and output.mean().item() == pytest.approx(1, abs=0.1)

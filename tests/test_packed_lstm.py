"""The LSTM layer over packed texts is PyTorch's, forwards and backwards, and in bfloat16 as near to float32."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fusion_captioner.causal_layers import CausalLSTM
from fusion_captioner.packed_lstm import LSTMLayer

SIZE = 12


def trained(own: bool, dtype: torch.dtype, lengths: list[int], layers: int = 1, autocast: bool = False):
    """Outputs at tokens, and the gradients of inputs and weights, of the layer or of `nn.LSTM`."""
    torch.manual_seed(0)
    module = CausalLSTM(SIZE, SIZE, layers, 0.0).to(dtype)
    inputs = torch.randn(len(lengths), max(lengths), SIZE, dtype=dtype, requires_grad=True)
    wanted = torch.randn(len(lengths), max(lengths), SIZE, dtype=dtype)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if own:
            outputs = module(inputs, mask)[0]
        else:
            packed = pack_padded_sequence(inputs, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
            outputs = pad_packed_sequence(module.recurrent(packed)[0], batch_first=True)[0]
    (outputs.to(dtype) * wanted).sum().backward()
    return [outputs[mask.bool()].detach(), inputs.grad, *(weight.grad for weight in module.parameters())]


@pytest.mark.parametrize("lengths", [[5, 2, 7, 7, 1], [1, 1], [4], [3, 3, 3]])
@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_and_gradients_are_those_of_pytorch(lengths: list[int], layers: int) -> None:
    torch.testing.assert_close(
        trained(True, torch.float64, lengths, layers), trained(False, torch.float64, lengths, layers)
    )


def test_a_gradient_that_others_read_too_stays_what_it_is() -> None:
    torch.manual_seed(0)
    weights = CausalLSTM(SIZE, SIZE, 1, 0.0).double().recurrent.all_weights[0]
    rows, wanted = (torch.randn(7, SIZE, dtype=torch.float64) for _ in range(2))
    gradients = []
    for residual in (0, 1):
        inputs = rows.clone().requires_grad_()
        outputs = LSTMLayer.apply(inputs, [3, 2, 2], *weights)
        (outputs + inputs if residual else outputs).backward(wanted.clone())
        gradients.append(inputs.grad)
    torch.testing.assert_close(gradients[1], gradients[0] + wanted)


def test_texts_of_one_token_have_nothing_to_keep() -> None:
    module = CausalLSTM(SIZE, SIZE, 1, 0.0)
    texts = torch.randn(2, 3, SIZE, requires_grad=True)
    module(texts, torch.tensor([[1, 0, 0], [1, 0, 0]]))[0].sum().backward()
    assert (texts.grad.abs().amax(dim=-1) > 0).tolist() == [[True, False, False]] * 2
    assert not module.recurrent.weight_hh_l0.grad.any()


def test_bfloat16_learns_what_float32_learns() -> None:
    lengths = [9, 4, 12, 7]
    exact = trained(False, torch.float32, lengths)
    mixed, pytorch = (trained(own, torch.float32, lengths, autocast=True) for own in (True, False))
    for right, ours, theirs in zip(exact, mixed, pytorch):
        error, allowed = ((each - right).norm() / right.norm() for each in (ours, theirs))
        assert 0 < error < max(1.2 * allowed, 0.01)
    assert [each.dtype for each in trained(True, torch.bfloat16, lengths)] == [torch.bfloat16] * 6


def test_a_frozen_layer_passes_gradients_on() -> None:
    module, inputs = CausalLSTM(SIZE, SIZE, 1, 0.0).requires_grad_(False), torch.randn(2, 3, SIZE, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    module(inputs, mask)[0].sum().backward()
    assert (inputs.grad.abs().amax(dim=-1) > 0).equal(mask.bool())
    assert all(weight.grad is None for weight in module.parameters())


def test_a_layer_that_was_changed_is_called_itself() -> None:
    module, inputs, mask = CausalLSTM(SIZE, SIZE, 1, 0.0), torch.randn(2, 3, SIZE), torch.ones(2, 3)
    calls = []
    module.recurrent.register_forward_hook(lambda *call: calls.append(call))
    module(inputs, mask)
    assert calls


def test_layers_drop_between_them_in_training() -> None:
    torch.manual_seed(0)
    module, inputs, mask = CausalLSTM(SIZE, SIZE, 2, 0.5), torch.randn(2, 3, SIZE), torch.ones(2, 3)
    assert not module(inputs, mask)[0].equal(module(inputs, mask)[0])
    module.eval()
    assert module(inputs, mask)[0].equal(module(inputs, mask)[0])

import pytest
import torch
from tiny_models import tiny_config

from fusion_captioner.decoder import CaptionDecoder


def decoder(**fields) -> CaptionDecoder:
    torch.manual_seed(0)
    return CaptionDecoder(tiny_config(dropout=0.0, **fields)).eval()


@pytest.mark.parametrize("decoder_type", ["lstm", "gru"])
@pytest.mark.parametrize("decoder_input", ["joint", "joint_and_embedding"])
def test_a_recurrent_decoder_adds_to_what_it_reads_and_normalises(decoder_type: str, decoder_input: str) -> None:
    with_residual = decoder(decoder_type=decoder_type, decoder_input=decoder_input)
    without = decoder(decoder_type=decoder_type, decoder_input=decoder_input, decoder_residual=False)
    without.layers.load_state_dict(with_residual.layers.state_dict())
    joint, embeddings = torch.randn(2, 3, 4, with_residual.layers.recurrent.hidden_size)
    expected = torch.nn.functional.layer_norm(without(joint, embeddings)[0] + joint, joint.shape[-1:])
    torch.testing.assert_close(with_residual(joint, embeddings)[0], expected)


def test_a_transformer_decoder_has_its_own_residual() -> None:
    assert decoder(decoder_type="transformer").norm is None

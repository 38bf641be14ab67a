"""Captions drawn from the captioner's distribution, those that have ended no longer computed."""

import pytest
import torch
from tiny_models import CONCEPTS, FUSION_TYPES, LAYER_TYPES, tiny_model

from fusion_captioner.training.self_critical import drawn_captions
from fusion_captioner.training.self_critical.drawn_captions import draw_captions, draw_tokens

EOS, LONGEST = 2, 12
MIXTURES = [(fusion, LAYER_TYPES[number % 3]) for number, fusion in enumerate(FUSION_TYPES)]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-torch.inf, 2.0, 0.0, 1.0, -torch.inf, -1.0, -torch.inf])
    tokens = draw_tokens(logits.expand(40_000, -1), temperature)
    shares = tokens.bincount(minlength=7) / len(tokens)
    expected = (logits / temperature).softmax(dim=0)
    assert (shares[expected == 0] == 0).all()
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)


def draw_by_logits(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Tokens as random as the logits are, and the same for the same logits."""
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    return torch.searchsorted(cumulative, logits[:, 7:8] * 3 % 1).clamp(max=logits.shape[1] - 1).squeeze(1)


@pytest.mark.parametrize(("fusion_type", "layer_type"), MIXTURES)
@pytest.mark.parametrize("padding", [0, 1])
def test_each_token_is_drawn_from_what_the_whole_text_gives(
    monkeypatch: pytest.MonkeyPatch, fusion_type: str, layer_type: str, padding: int
) -> None:
    """Also after other captions ended and their rows were dropped."""
    model = tiny_model(
        fusion_type=fusion_type, text_encoder_type=layer_type, decoder_type=layer_type, **CONCEPTS, concept_bias=1.0
    ).eval()
    torch.manual_seed(1)
    model.lm_head.bias.data[EOS] = 3.0
    torch.nn.init.normal_(model.model.concept_head.classifier.weight, std=2.0)
    images = 12
    regions = torch.randn(images, 5, model.model.image_encoder.hidden_size)
    ids = torch.randint(3, 50, (images, 3))
    mask = torch.ones_like(ids)
    mask[: images // 2, :padding] = 0
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda layer, inputs, output: rows.append(len(output)))
    monkeypatch.setattr(drawn_captions, "draw_tokens", draw_by_logits)
    captions = draw_captions(model, regions, {"input_ids": ids, "attention_mask": mask}, 2, LONGEST, EOS)
    assert captions.shape == (2 * images, 3 + len(rows))
    assert rows[0] == 2 * images and rows[-1] < rows[0] and rows == sorted(rows, reverse=True)
    for image in range(images):
        text, texts_mask = ids[image : image + 1], mask[image : image + 1]
        while text.shape[1] < captions.shape[1] and EOS not in text[0, 3:]:
            logits = model(input_ids=text, attention_mask=texts_mask, image_hidden_states=regions[image : image + 1])
            text = torch.cat((text, draw_by_logits(logits.logits[:, -1], 1.0)[:, None]), dim=1)
            texts_mask = torch.cat((texts_mask, torch.ones_like(text[:, :1])), dim=1)
        ended = [EOS] * (captions.shape[1] - text.shape[1])
        assert captions[2 * image : 2 * image + 2].tolist() == [text[0].tolist() + ended] * 2


def test_captions_that_do_not_end_break_off() -> None:
    model = tiny_model().eval()
    model.lm_head.bias.data[EOS] = -torch.inf
    regions = torch.randn(2, 5, model.model.image_encoder.hidden_size)
    prompts = {
        "input_ids": torch.tensor([[0, 1, 5], [1, 7, 6]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    }
    captions = draw_captions(model, regions, prompts, 4, LONGEST, EOS)
    assert captions.shape == (8, 3 + LONGEST) and EOS not in captions[:, 3:]


def test_the_captioners_own_call_says_what_is_likely_at_every_step() -> None:
    """Also with a hook, as tools hang them on models."""
    model = tiny_model().eval()
    banned = list(range(3, 50, 2))

    def ban(module, inputs, outputs):
        outputs.logits[..., banned] = -torch.inf
        return outputs

    model.register_forward_hook(ban)
    prompts = {"input_ids": torch.tensor([[1]] * 3), "attention_mask": torch.ones(3, 1, dtype=torch.long)}
    captions = draw_captions(model, torch.randn(3, 5, model.model.image_encoder.hidden_size), prompts, 8, LONGEST, EOS)
    assert not torch.isin(captions, torch.tensor(banned)).any()


def test_with_many_regions_nothing_is_copied() -> None:
    model = tiny_model().eval()
    model.lm_head.bias.data[EOS] = 3.0
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda layer, inputs, output: rows.append(len(output)))
    prompts = {"input_ids": torch.tensor([[1]] * 3), "attention_mask": torch.ones(3, 1, dtype=torch.long)}
    for regions, drops in ((5, True), (300, False)):
        rows.clear()
        torch.manual_seed(0)
        draw_captions(model, torch.randn(3, regions, model.model.image_encoder.hidden_size), prompts, 8, LONGEST, EOS)
        assert (rows[-1] < 24) == drops


def test_a_low_temperature_leaves_the_likeliest_words() -> None:
    model = tiny_model().eval()
    prompts = {"input_ids": torch.tensor([[1]] * 3), "attention_mask": torch.ones(3, 1, dtype=torch.long)}
    regions = torch.randn(3, 5, model.model.image_encoder.hidden_size)
    captions = draw_captions(model, regions, prompts, 4, LONGEST, EOS, temperature=1e-6)
    greedy = model.generate(
        **prompts, image_hidden_states=regions, do_sample=False, num_beams=1, max_new_tokens=LONGEST, eos_token_id=EOS
    )
    words = greedy.masked_fill(greedy == model.config.pad_token_id, EOS).repeat_interleave(4, dim=0)
    assert torch.equal(captions, words)

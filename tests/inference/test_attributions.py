import torch
from PIL import Image
from tiny_exports import tiny_processor
from tiny_models import tiny_model

from fusion_captioner.inference.attention_maps import read_caption
from fusion_captioner.inference.attributions import (
    ReadCaption,
    attention_gradient,
    blurred,
    cover,
    integrated_gradients,
    occlusion,
)


def read(**fields) -> ReadCaption:
    photo = Image.effect_noise((48, 40), 80).convert("RGB")
    return read_caption(tiny_model(**fields), tiny_processor(), photo, "w5 w9 w7")


def test_marked_regions_are_covered_in_the_pixels() -> None:
    pixel_values = torch.randn(1, 3, 32, 32)
    marked = torch.zeros(2, 4, 4, dtype=torch.bool)
    marked[1, 0, 3] = True
    left, right = cover(pixel_values, marked)
    assert torch.equal(left, pixel_values[0])
    assert torch.equal(right[:, :8, 24:], pixel_values[0].mean((1, 2), keepdim=True).expand(-1, 8, 8))
    assert torch.equal(right[:, 8:], pixel_values[0, :, 8:]) and torch.equal(
        right[..., :24], pixel_values[0, ..., :24]
    )
    smooth = blurred(pixel_values, (4, 4))
    assert smooth.shape == pixel_values.shape and smooth.std() < pixel_values.std() / 2


def test_occlusion_is_the_fall_of_each_word() -> None:
    caption = read()
    found = occlusion(caption)
    rows, columns = caption.grid
    pixel_values = caption.pixel_values.clone()
    height, width = 32 // rows, 32 // columns
    pixel_values[..., height : 2 * height, :width] = pixel_values.mean((2, 3), keepdim=True)
    with torch.no_grad():
        scores = [
            caption.model(input_ids=caption.sequence, pixel_values=pixels).logits[0].log_softmax(-1)
            for pixels in (caption.pixel_values, pixel_values)
        ]
    for word, (place,) in enumerate(caption.positions):
        token = caption.sequence[0, place]
        expected = scores[0][place - 1, token] - scores[1][place - 1, token]
        assert torch.allclose(found[word, columns], expected, atol=1e-4)


def test_integrated_gradients_add_up_to_what_the_picture_changes() -> None:
    caption = read()
    found = integrated_gradients(caption, steps=400).sum(dim=1)
    baseline = caption.regions.mean(dim=1, keepdim=True).expand_as(caption.regions)
    with torch.no_grad():
        expected = caption.word_log_probabilities(caption.regions) - caption.word_log_probabilities(baseline)
    assert expected.abs().max() > 0.01
    assert torch.allclose(found, expected[0], rtol=0.05, atol=1e-3)


def test_attention_gradient_keeps_looks_that_help_the_word() -> None:
    caption = read()
    found = attention_gradient(caption)
    outputs = caption.read(caption.regions, output_attentions=True)
    weights = outputs.attentions[0]
    (by_hand,) = torch.autograd.grad(caption.of_words(outputs.logits)[0, 1], weights)
    expected = (by_hand * weights).clamp(min=0)[0].mean(0).sum(0)
    assert torch.allclose(found[1], expected, atol=1e-6) and found.min() >= 0 and found[1].sum() > 0
    assert not found.requires_grad

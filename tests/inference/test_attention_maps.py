import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model, tiny_tokenizer

from fusion_captioner import FusionCaptionerImageProcessor, FusionCaptionerProcessor
from fusion_captioner.inference.attention_maps import AttendedCaption, attended_captions, grid_shape, words_of_tokens
from fusion_captioner.inference.attention_page import draw_sheet, lit, render_page


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def processor() -> FusionCaptionerProcessor:
    return FusionCaptionerProcessor(FusionCaptionerImageProcessor(size={"height": 32, "width": 32}), tiny_tokenizer())


def test_the_grid_has_the_proportions_of_the_image() -> None:
    assert grid_shape(49, (224, 224)) == (7, 7)
    assert grid_shape(32, (128, 256)) == (4, 8)
    with pytest.raises(ValueError, match=r"`regions` \(50\)"):
        grid_shape(50, (224, 224))


def test_pieces_of_a_word_belong_together() -> None:
    pieces = {2: "a", 3: " black", 4: "bird", 5: " sings"}

    class Pieces:
        all_special_ids = (0, 1)

        def decode(self, ids, skip_special_tokens):
            return "".join(pieces.get(token, "") for token in ids)

    assert words_of_tokens(Pieces(), [0, 2, 3, 4, 5, 1]) == (["a", "blackbird", "sings"], [[1], [2, 3], [4]])


def test_a_word_has_the_attention_of_the_token_before_it() -> None:
    torch.manual_seed(0)
    model, parts = tiny_model().eval(), processor()
    first, second = attended_captions(model, parts, pictures(), max_new_tokens=6, min_new_tokens=6)
    inputs = parts(images=pictures()[0], return_tensors="pt")
    sequence = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6)
    with torch.no_grad():
        weights = model(input_ids=sequence, pixel_values=inputs["pixel_values"], output_attentions=True).attentions[0]
    words, positions = words_of_tokens(parts.tokenizer, sequence[0].tolist())
    assert first.words == words and len(second.words) == len(second.maps)
    for of_word, attention in zip(positions, first.maps, strict=True):
        expected = torch.stack([weights[0, :, position - 1].mean(0) for position in of_word]).mean(0)
        np.testing.assert_allclose(attention.ravel(), expected.numpy(), atol=1e-5)
        assert attention.sum() == pytest.approx(1, abs=1e-4)


def test_a_fusion_without_attention_has_nothing_to_show() -> None:
    model = tiny_model(fusion_type="sum").eval()
    with pytest.raises(ValueError, match="`fusion_type` \\('sum'\\)"):
        attended_captions(model, processor(), pictures(), max_new_tokens=2)


def test_page_and_sheet_hold_every_word_and_escape_it() -> None:
    maps = np.zeros((3, 2, 2))
    maps[:, 0, 1] = 1.0
    caption = AttendedCaption(["a", "<b>", "dog"], maps)
    page = render_page("Two & more", "Often <wrong>.", ["x<y.jpg"], pictures()[:1], [caption])
    assert (
        page.count("<li>") == 3
        and "&lt;b&gt;" in page
        and "<b>" not in page
        and "x&lt;y.jpg" in page
        and "Often &lt;wrong&gt;." in page
    )
    sheet = draw_sheet(pictures(), [caption, AttendedCaption([], np.empty((0, 2, 2)))])
    assert sheet.width > 1000 and np.asarray(sheet).min() < 10


def test_a_picture_is_bright_where_it_was_looked_at() -> None:
    white = Image.new("RGB", (40, 40), "white")
    attention = np.array([[0.0, 1.0], [0.0, 0.0]])
    pixels = np.asarray(lit(white, attention))
    assert pixels[2, -3].min() > 240 and pixels[-3, 2].max() < 80

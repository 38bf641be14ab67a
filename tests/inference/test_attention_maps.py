import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model, tiny_tokenizer

from fusion_captioner import FusionCaptionerImageProcessor, FusionCaptionerProcessor
from fusion_captioner.inference.attention_maps import (
    ExplainedCaption,
    explain_captions,
    grid_shape,
    shares,
    words_of_tokens,
)
from fusion_captioner.inference.attention_page import draw_sheet, lit, render_page
from fusion_captioner.inference.attributions import ATTRIBUTIONS


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def processor(resize_mode: str = "squash") -> FusionCaptionerProcessor:
    image_processor = FusionCaptionerImageProcessor(size={"height": 32, "width": 32}, resize_mode=resize_mode)
    return FusionCaptionerProcessor(image_processor, tiny_tokenizer())


def explained(words: list[str], maps: np.ndarray, photo_size=(40, 60), box=(0.0, 0.0, 60.0, 40.0)) -> ExplainedCaption:
    return ExplainedCaption(" ".join(words), words, maps, np.zeros(len(words)), photo_size, box)


def test_the_grid_has_the_proportions_of_the_image() -> None:
    assert grid_shape(49, (224, 224)) == (7, 7)
    assert grid_shape(32, (128, 256)) == (4, 8)
    assert grid_shape(80, (225, 320)) == (8, 10)  # a CNN has a row for what is left over
    assert grid_shape(14 * 18, (225, 300)) == (14, 18)  # patches of 16 leave it out
    with pytest.raises(ValueError, match=r"`regions` \(50\)"):
        grid_shape(50, (224, 224))


class Pieces:
    """A tokenizer that puts the bytes of its pieces together."""

    all_special_ids = (0, 1)

    def __init__(self, *pieces: str | bytes) -> None:
        self.pieces = [b"", b""] + [piece if isinstance(piece, bytes) else piece.encode() for piece in pieces]

    def decode(self, ids, skip_special_tokens):
        return b"".join(self.pieces[token] for token in ids).decode(errors="replace")


@pytest.mark.parametrize(
    "pieces, expected",
    [
        (["a", " black", "bird", " sings"], [("a", [1]), ("blackbird", [2, 3]), ("sings", [4])]),
        (["two", " dogs", ".", " "], [("two", [1]), ("dogs.", [2, 3, 4])]),
        (["一", "只", "小狗", "。"], [("一", [1]), ("只", [2]), ("小狗。", [3, 4])]),
        (["狗".encode()[:2], "狗".encode()[2:], "跑"], [("狗", [1, 2]), ("跑", [3])]),
        (["the", " ", "caf", "é".encode()[:1], "é".encode()[1:]], [("the", [1, 2]), ("café", [3, 4, 5])]),
        ([], []),
    ],
)
def test_pieces_of_a_word_belong_together(pieces: list, expected: list) -> None:
    assert words_of_tokens(Pieces(*pieces), [0, *range(2, len(pieces) + 2), 1]) == expected


def test_a_word_has_the_attention_of_the_token_before_it() -> None:
    torch.manual_seed(0)
    model, parts = tiny_model().eval(), processor()
    settings = {"max_new_tokens": 6, "min_new_tokens": 6}
    first, second = explain_captions(model, parts, pictures(), "attention", **settings)
    inputs = parts(images=pictures()[0], return_tensors="pt")
    sequence = model.generate(**inputs, **settings)
    with torch.no_grad():
        outputs = model(input_ids=sequence, pixel_values=inputs["pixel_values"], output_attentions=True)
    weights = outputs.attentions[0][0].mean(0)
    scores = outputs.logits[0].log_softmax(dim=-1)
    words = words_of_tokens(parts.tokenizer, sequence[0].tolist())
    assert first.words == [word for word, _ in words] and len(second.words) == len(second.region_maps)
    assert first.text == " ".join(first.words)
    for (_, positions), region_map, found in zip(words, first.region_maps, first.log_probabilities, strict=True):
        expected = torch.stack([weights[position - 1] for position in positions]).mean(0)
        np.testing.assert_allclose(region_map.ravel(), expected.numpy(), atol=1e-5)
        assert found == pytest.approx(
            sum(scores[place - 1, sequence[0, place]].item() for place in positions), abs=1e-4
        )


@pytest.mark.parametrize("method", ATTRIBUTIONS)
@pytest.mark.parametrize("resize_mode", ["squash", "crop"])
def test_maps_lie_on_the_photo(method: str, resize_mode: str) -> None:
    found = explain_captions(tiny_model(), processor(resize_mode), pictures(), method, ["w5 w6 w7", "w8"])
    assert [caption.text for caption in found] == ["w5 w6 w7", "w8"]
    for caption, words in zip(found, (3, 1), strict=True):
        assert caption.maps.shape == (words, 40, 60)
        np.testing.assert_allclose(caption.maps.sum(axis=(1, 2)), 1, atol=1e-4)
        np.testing.assert_allclose(caption.region_maps.sum(axis=(1, 2)), 1, atol=1e-4)
        beyond = caption.maps[:, :, :10].sum() + caption.maps[:, :, 50:].sum()
        assert (beyond == 0) == (resize_mode == "crop")  # the middle 40 of 60 columns are seen


def test_a_region_is_shown_where_it_is() -> None:
    corner = np.zeros((1, 4, 4))
    corner[0, 3, 0] = 1.0
    for box in ((0.0, 0.0, 60.0, 40.0), (10.0, 0.0, 50.0, 40.0)):
        caption = explained(["dog"], corner, box=box)
        for size in ((40, 60), (400, 600), (7, 9)):
            weights = caption.photo_map(0, size)
            assert weights.shape == size
            row, column = np.unravel_index(weights.argmax(), size)
            assert row / size[0] > 0.7
            assert box[0] / 60 - 0.1 <= column / size[1] <= box[0] / 60 + (box[2] - box[0]) / 60 / 4


@pytest.mark.parametrize("method", ATTRIBUTIONS)
def test_what_follows_a_word_does_not_change_its_map(method: str) -> None:
    photo = pictures()[0]
    short, long = explain_captions(tiny_model(), processor(), [photo, photo], method, ["w5 w6 w7", "w5 w9 w7 w8"])
    np.testing.assert_allclose(short.region_maps[0], long.region_maps[0], atol=1e-4)
    assert not np.allclose(short.region_maps[2], long.region_maps[2], atol=1e-4)


@pytest.mark.parametrize("fusion_type", ["sum", "co_attention"])
def test_every_fusion_is_explained(fusion_type: str) -> None:
    model = tiny_model(fusion_type=fusion_type).requires_grad_(False)
    for method in ATTRIBUTIONS:
        with torch.inference_mode():
            if fusion_type == "sum" and method.startswith("attention"):
                with pytest.raises(ValueError, match="`fusion_type` \\('sum'\\)"):
                    explain_captions(model, processor(), pictures(), method, max_new_tokens=2)
            else:
                found = explain_captions(model, processor(), pictures()[:1], method, ["w5 w6"])
                assert found[0].region_maps.std() > 0


def test_an_empty_caption_has_no_maps() -> None:
    (found,) = explain_captions(tiny_model(), processor(), pictures()[:1], texts=[""])
    assert found.words == [] and found.text == "" and found.maps.shape == (0, 40, 60)
    assert found.log_probabilities.shape == (0,)


def test_shares_leave_out_what_speaks_against_a_word() -> None:
    found = shares(torch.tensor([[3.0, 1.0, -4.0, 0.0], [-1.0, -2.0, 0.0, -3.0]]))
    assert found.tolist() == [[0.75, 0.25, 0, 0], [0.25] * 4]


def test_bad_arguments_are_named() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="`method` \\('grad'\\) must be one of 'attention'"):
        explain_captions(model, processor(), pictures(), "grad")
    with pytest.raises(ValueError, match="`texts` \\(1 texts\\) do not fit 2 images"):
        explain_captions(model, processor(), pictures(), texts=["a"])
    with pytest.raises(ValueError, match="`texts` \\(one string\\)"):
        explain_captions(model, processor(), pictures(), texts="ab")
    with pytest.raises(ValueError, match=r"`images` \('photo\.jpg'\)"):
        explain_captions(model, processor(), "photo.jpg")


def test_page_and_sheet_hold_every_word_and_escape_it() -> None:
    maps = np.zeros((3, 2, 2))
    maps[:, 0, 1] = 1.0
    caption = explained(["a", "<b>", "dog"], maps)
    page = render_page("Two & more", "Often <wrong>.", ["x<y.jpg"], pictures()[:1], [caption])
    assert (
        page.count("<li>") == 3
        and "&lt;b&gt;" in page
        and "<b>" not in page
        and "x&lt;y.jpg" in page
        and "Often &lt;wrong&gt;." in page
    )
    sheet = draw_sheet(pictures(), [caption, explained([], np.empty((0, 2, 2)))])
    assert sheet.width > 1000 and np.asarray(sheet).min() < 10


def test_a_picture_is_bright_where_the_map_is_high() -> None:
    white = Image.new("RGB", (60, 40), "white")
    pixels = np.asarray(lit(white, explained(["dog"], np.array([[[0.0, 1.0], [0.0, 0.0]]])), 0))
    assert pixels[2, -3].min() > 240 and pixels[-3, 2].max() < 80


@pytest.mark.real_data
def test_words_need_the_regions_that_are_marked(real_data: Path) -> None:
    from fusion_captioner import DEFAULT_CHECKPOINT
    from fusion_captioner.checkpoints.loading import load_captioner
    from fusion_captioner.image_loading import load_image
    from fusion_captioner.inference.attention_maps import explain_caption, read_caption
    from fusion_captioner.inference.attributions import cover, occlusion

    model, parts = load_captioner(DEFAULT_CHECKPOINT)
    falls: dict[str, list[float]] = {"marked": [], "least": []}
    for path in sorted((real_data / "flickr8k" / "images").glob("*.jpg"))[:3]:
        photo = load_image(path)
        read = read_caption(model, parts, photo)
        caption = explain_caption(read, parts, photo, "attention")
        assert caption.maps.shape == (len(caption.words), photo.height, photo.width)
        assert math.exp(caption.log_probabilities.sum()) > 1e-12
        of_regions = occlusion(read)
        for name, ordered in (("marked", of_regions), ("least", -of_regions)):
            marks = torch.zeros_like(ordered, dtype=torch.bool).scatter(1, ordered.topk(10, dim=1).indices, True)
            with torch.no_grad():
                regions = model.get_image_hidden_states(cover(read.pixel_values, marks.unflatten(1, read.grid)))
                drops = read.word_log_probabilities(read.regions) - read.word_log_probabilities(regions)
            falls[name].append(drops.diagonal().mean().item())
    assert np.mean(falls["marked"]) > np.mean(falls["least"]) + 0.2

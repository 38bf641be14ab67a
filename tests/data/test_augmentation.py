from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_captioner import caption_rows, tiny_model, tiny_processor

from fusion_captioner.data.augmentation import AUGMENTATIONS, augment, colour, crop, flip
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import CaptionCollator
from fusion_captioner.data.feature_cache import cached_features
from fusion_captioner.training.arguments import read_run_arguments


class Drawn(Random):
    """Draws the same number always."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def test_a_mirrored_picture_has_its_sides_swapped_in_words_too(picture: Image.Image) -> None:
    mirrored, captions = flip(picture, ["A dog on the Left of a bright leftover", "right, then left"], Drawn(0.9))
    np.testing.assert_array_equal(np.asarray(mirrored), np.asarray(picture)[:, ::-1])
    assert captions == ["A dog on the Right of a bright leftover", "left, then right"]


def test_sides_are_swapped_in_german_and_chinese(picture: Image.Image) -> None:
    texts = [
        "links steht ein Hund, die rechte Pfote oben, im linken Bild",
        "狗在左边，人在右边",
        "verlinkt und gerecht",
    ]
    swapped = ["rechts steht ein Hund, die linke Pfote oben, im rechten Bild", "狗在右边，人在左边", texts[2]]
    assert flip(picture, texts, Drawn(0.9))[1] == swapped
    for writing in ("ein Schild mit Buchstaben", "写着字的牌子"):
        assert flip(picture, [writing], Drawn(0.9)) == (picture, [writing])


def test_a_picture_is_not_always_mirrored_and_never_its_writing(picture: Image.Image) -> None:
    assert flip(picture, ["a dog"], Drawn(0.4)) == (picture, ["a dog"])
    writing = ["a dog", "a sign that says stop"]
    assert flip(picture, writing, Drawn(0.9)) == (picture, writing)


def test_a_crop_is_a_part_of_the_picture(picture: Image.Image) -> None:
    pixels = np.asarray(picture)
    for seed in range(20):
        part, captions = crop(picture, ["a dog"], Random(seed))
        assert 48 <= part.width <= 60 and 32 <= part.height <= 40 and captions == ["a dog"]
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (part.height, part.width), axis=(0, 1))
        assert any((window == np.asarray(part).transpose(2, 0, 1)).all() for row in windows for window in row)


def test_colours_change_a_little(picture: Image.Image) -> None:
    changed, _ = colour(picture, [], Random(1))
    difference = np.abs(np.asarray(changed, int) - np.asarray(picture, int))
    assert 0 < difference.mean() < 40 and changed.size == picture.size


def test_what_is_drawn_is_a_function_of_the_seed(picture: Image.Image) -> None:
    first = augment(picture, ["on the left"], list(AUGMENTATIONS), "0/3/17")
    again = augment(picture, ["on the left"], list(AUGMENTATIONS), "0/3/17")
    other = augment(picture, ["on the left"], list(AUGMENTATIONS), "0/4/17")
    np.testing.assert_array_equal(np.asarray(first[0]), np.asarray(again[0]))
    assert first[1] == again[1]
    assert first[0].size != other[0].size or (np.asarray(first[0]) != np.asarray(other[0])).any()


def test_batches_of_an_epoch_are_augmented_the_same_whenever_they_are_made(tmp_path: Path) -> None:
    rows, collate = caption_rows(tmp_path, 4), CaptionCollator(tiny_processor())
    data = CaptionDataset(rows, 1, seed=0, augmentations=["flip", "crop", "colour"])
    plain = collate([CaptionDataset(rows, 1, seed=0)[index] for index in range(4)])["pixel_values"]
    first, again = (collate([data[index] for index in range(4)])["pixel_values"] for _ in range(2))
    data.set_epoch(1)
    later = collate([data[index] for index in range(4)])["pixel_values"]
    assert first.equal(again) and first.shape == plain.shape
    assert not first.equal(plain) and not first.equal(later)


def test_cached_features_are_mirrored_where_images_would_be(tmp_path: Path) -> None:
    torch.manual_seed(0)
    processor, model = tiny_processor(), tiny_model().eval()
    model.freeze_image_encoder()
    rows = caption_rows(tmp_path, 8).map(lambda row: {"captions": ["a square on the left"]})
    cached = cached_features({"train": rows}, model, processor.image_processor, tmp_path / "cache", mirrored=["train"])
    from_pixels = CaptionDataset(rows, 1, seed=0, augmentations=["flip"])
    from_cache = CaptionDataset(
        rows, 1, 0, cached["train"].features, ["flip"], mirrored_features=cached["train"].mirrored_features
    )
    collate = CaptionCollator(processor)
    sides = set()
    for epoch in range(2):
        from_pixels.set_epoch(epoch)
        from_cache.set_epoch(epoch)
        pixels, features = (collate([data[index] for index in range(8)]) for data in (from_pixels, from_cache))
        assert features["input_ids"].equal(pixels["input_ids"])
        with torch.no_grad():
            expected = model.get_image_hidden_states(pixels["pixel_values"])
        torch.testing.assert_close(features["image_hidden_states"], expected, atol=2e-3, rtol=2e-3)
        sides |= {caption for row in from_cache.__getitems__(range(8)) for caption in row["captions"]}
    assert sides == {"a square on the left", "a square on the right"}


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--data.augmentations", "[flip, twirl]"], "twirl"),
        (["--data.augmentations", "flip"], "list"),
        (["--data.augmentations", "[flip, crop]", "--data.feature_cache", "features"], "data.feature_cache"),
        (["--data.augmentations", "[flip]", "--data.streaming", "true"], "data.streaming"),
    ],
)
def test_augmentations_that_cannot_be_are_refused(tmp_path: Path, flags: list[str], word: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {source: photos}\n")
    with pytest.raises(ValueError, match=r"`data.augmentations`") as caught:
        read_run_arguments(recipe, flags)
    assert word in str(caught.value)

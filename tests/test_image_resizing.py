"""Pictures are resized as by Pillow's filters, to the grey level."""

import numpy as np
import pytest
from PIL import Image

from fusion_captioner.image_resizing import resize_image, seen_box, write_resized


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def differences(image: Image.Image, other: Image.Image) -> np.ndarray:
    """In grey levels, of each value."""
    assert image.mode == other.mode == "RGB"
    return np.abs(np.asarray(image, int) - np.asarray(other, int))


@pytest.mark.parametrize("mode", ["squash", "crop"])
@pytest.mark.parametrize("resample", list(Image.Resampling))
@pytest.mark.parametrize("size", [(480, 640), (427, 640), (215, 221), (20, 31), (3, 700), (1, 1), (900, 230)])
def test_values_are_those_of_pillow(size: tuple[int, int], resample: Image.Resampling, mode: str):
    picture = noise(*size).resize((size[1] // 2 or 1, size[0] // 2 or 1))  # smooth, as photos are
    picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    box = seen_box(size, (224, 200), mode)
    expected = picture.resize((200, 224), resample, box=box, reducing_gap=2.0)
    apart = differences(resize_image(picture, (224, 200), mode, resample), expected)
    assert apart.mean() < 0.35 and (apart > 1).mean() < 0.02


def test_planes_have_the_values_of_the_picture():
    picture, planes = noise(60, 80), np.empty((3, 30, 50), np.float32)
    write_resized(picture, planes, "crop")
    np.testing.assert_array_equal(planes, np.asarray(resize_image(picture, (30, 50), "crop")).transpose(2, 0, 1))
    write_resized(picture, large := np.empty((3, 60, 80), np.float32))
    np.testing.assert_array_equal(large, np.asarray(picture).transpose(2, 0, 1))


def test_overshooting_edges_are_cut_off():
    stripes = Image.fromarray(
        np.kron(np.tile([[0, 255]], (1, 20)), np.ones((40, 3)))[..., None].repeat(3, 2).astype(np.uint8)
    )
    assert (
        differences(resize_image(stripes, (50, 170)), stripes.resize((170, 50), Image.Resampling.BICUBIC)).max() <= 1
    )


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match=r"`resize_mode` \('pad'\) must be one of 'squash', 'crop'"):
        resize_image(noise(4, 4), (4, 4), "pad")


def test_squash_keeps_everything_and_crop_keeps_the_middle():
    stripes = Image.new("RGB", (90, 30), "red")
    stripes.paste("green", (30, 0, 60, 30))
    stripes.paste("blue", (60, 0, 90, 30))
    squashed = resize_image(stripes, (15, 15))
    assert squashed.size == (15, 15)
    assert [squashed.getpixel((x, 7)) for x in (1, 7, 13)] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    cropped = resize_image(stripes, (15, 15), "crop")
    assert [cropped.getpixel((x, 7)) for x in (2, 7, 12)] == [(0, 128, 0)] * 3
    assert resize_image(stripes.rotate(90, expand=True), (10, 20), "crop").size == (20, 10)


@pytest.mark.parametrize("size", [(7, 3), (3, 7), (224, 224), (641, 479)])
def test_crop_works_for_odd_sizes(size: tuple[int, int]):
    for width, height in ((1, 1), (5, 1000), (1023, 767)):
        assert resize_image(Image.new("RGB", (width, height)), size, "crop").size == size[::-1]


def test_crop_equals_short_side_then_centre_crop():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))
    reference = image.resize((50, 30), Image.Resampling.BICUBIC).crop((10, 0, 40, 30))
    assert differences(resize_image(image, (30, 30), "crop"), reference).max() <= 1

"""Image processor: the pixels it makes, its settings, its place among transformers' image processors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor

from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor


def noise(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected_pixels(pixels: np.ndarray, size: int) -> np.ndarray:
    resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    values = np.asarray(resized, np.float64) / 255
    return ((values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)


def test_pixel_values_are_resized_rescaled_and_normalised():
    processor = FusionCaptionerImageProcessor(size=24)
    batch = processor(noise(), return_tensors="pt")
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].dtype == torch.float32
    np.testing.assert_allclose(batch["pixel_values"][0], expected_pixels(noise(), 24), atol=1e-5)


def test_defaults_are_those_of_imagenet_encoders():
    assert isinstance(FusionCaptionerImageProcessor(), BaseImageProcessor)
    assert FusionCaptionerImageProcessor()(noise())["pixel_values"].shape == (1, 3, 224, 224)


def test_one_or_many_of_any_kind(tmp_path: Path):
    processor = FusionCaptionerImageProcessor(size={"height": 8, "width": 12})
    picture = Image.fromarray(noise())
    picture.save(tmp_path / "noise.png")
    content = (tmp_path / "noise.png").read_bytes()
    one = processor(picture)["pixel_values"]
    assert one.shape == (1, 3, 8, 12)
    mixed = [picture, str(tmp_path / "noise.png"), content, {"path": None, "bytes": content}, noise()]
    mixed.append(torch.from_numpy(noise().transpose(2, 0, 1).copy()))
    for images in (mixed, tuple(mixed), np.stack([noise()] * 6)):
        np.testing.assert_array_equal(processor(images)["pixel_values"], np.repeat(one, 6, axis=0))


def test_videos_keep_their_frames_apart():
    processor = FusionCaptionerImageProcessor(size=8)
    frames = [[noise(seed=10 * video + frame) for frame in range(3)] for video in range(2)]
    videos = processor(frames, return_tensors="pt")["pixel_values"]
    assert videos.shape == (2, 3, 3, 8, 8)
    np.testing.assert_array_equal(videos[1, 2], processor(frames[1][2])["pixel_values"][0])
    for same in ([np.stack(video) for video in frames], np.stack([np.stack(video) for video in frames])):
        np.testing.assert_array_equal(processor(same)["pixel_values"], videos)


def test_lists_of_one_image_are_images():
    assert FusionCaptionerImageProcessor(size=8)([[noise()], [noise()]])["pixel_values"].shape == (2, 3, 8, 8)


def test_settings_of_a_call_hold_for_that_call():
    processor = FusionCaptionerImageProcessor(size=8)
    raw = processor(noise(), do_normalize=False, do_rescale=False, do_resize=False)["pixel_values"]
    np.testing.assert_array_equal(raw[0], noise().transpose(2, 0, 1))
    halves = processor(noise(), do_normalize=False, rescale_factor=0.5, do_resize=False)["pixel_values"]
    np.testing.assert_array_equal(halves * 2, raw)
    cropped = processor(noise(), size=20, resize_mode="crop", image_mean=0.5, image_std=0.5)["pixel_values"]
    middle = Image.fromarray(noise()).resize((30, 20), Image.Resampling.BICUBIC).crop((5, 0, 25, 20))
    np.testing.assert_allclose(cropped[0], np.asarray(middle).transpose(2, 0, 1) / 127.5 - 1, atol=1e-5)
    assert processor(noise(), resize_mode=None)["pixel_values"].shape == (1, 3, 8, 8)


def test_saves_and_loads(tmp_path: Path):
    processor = FusionCaptionerImageProcessor(size=(8, 12), resize_mode="crop", image_mean=[0.5, 0.4, 0.3], resample=2)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["size"] == {"height": 8, "width": 12}
    assert saved["resize_mode"] == "crop"
    loaded = FusionCaptionerImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    np.testing.assert_array_equal(loaded(noise())["pixel_values"], processor(noise())["pixel_values"])
    assert FusionCaptionerImageProcessor.from_pretrained(tmp_path, resize_mode="squash").resize_mode == "squash"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "`size`"),
        ({"size": {"shortest_edge": 224}}, "set `resize_mode='crop'`"),
        ({"size": {"height": 224}}, "`size`"),
        ({"size": "large"}, "`size` \\('large'\\)"),
        ({"size": {"height": 2.5, "width": 2}}, "whole pixels"),
        ({"resize_mode": "pad"}, "`resize_mode` \\('pad'\\) must be one of 'squash', 'crop'"),
        ({"resample": 17}, r"`resample` \(17\) must be one of 0 \(nearest\)"),
        ({"do_resize": "yes"}, "`do_resize` \\('yes'\\) must be true or false"),
        ({"do_convert_rgb": False}, "`do_convert_rgb`"),
        ({"rescale_factor": 0}, "`rescale_factor` \\(0\\)"),
        ({"image_mean": [0.5, 0.5]}, "`image_mean`"),
        ({"image_std": [0.5, 0.5, 0]}, "`image_std`"),
        ({"image_std": float("nan")}, "`image_std`"),
        ({"image_mean": 1e308}, "`image_mean`.* no numbers"),
        ({"rescale_factor": 1e38}, "`rescale_factor`.* no numbers"),
        ({"do_center_crop": True}, "use `resize_mode='crop'`"),
        ({"colour": True}, "`colour` is no setting"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        FusionCaptionerImageProcessor(**settings)
    with pytest.raises(ValueError, match=message):
        FusionCaptionerImageProcessor()(noise(), **settings)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "`images` is empty"),
        ([[]], "samples of 0 frames"),
        ([[noise()], [noise(), noise()]], "samples of 1, 2 frames"),
        ([noise(), [noise()]], "mixes images and lists of frames"),
        ([noise(), b""], r"images\[1\]: the file is empty"),
        ([[noise(), noise()], [noise(), None]], r"images\[1\]\[1\]: a NoneType is no image"),
        ([noise(), {"path": "a/b.jpg", "bytes": b"text"}], r"a/b\.jpg: not an image"),
    ],
)
def test_bad_images_are_named(images: Any, message: str):
    with pytest.raises(ValueError, match=message):
        FusionCaptionerImageProcessor()(images)


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg: no such file"):
        FusionCaptionerImageProcessor()([noise(), "nowhere.jpg"])


def test_sizes_must_agree_without_resizing():
    with pytest.raises(ValueError, match="different sizes, 40x60 and 41x60"):
        FusionCaptionerImageProcessor()([noise(), noise(41)], do_resize=False)


@pytest.mark.real_data
def test_real_photos(real_data: Path):
    paths = sorted((real_data / "flickr8k" / "images").glob("*.jpg"))[:4]
    pixel_values = FusionCaptionerImageProcessor()(paths, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (4, 3, 224, 224)
    np.testing.assert_allclose(
        pixel_values[2], expected_pixels(np.asarray(Image.open(paths[2]).convert("RGB")), 224), atol=1e-5
    )


def test_an_unknown_setting_is_refused_when_it_is_set(tmp_path) -> None:
    processor = FusionCaptionerImageProcessor()
    with pytest.raises(ValueError, match="`note` is no setting"):
        processor.note = 1
    with pytest.raises(ValueError, match=r"`crop_size` is no setting .* `size` with `resize_mode='crop'`"):
        processor.crop_size = {"height": 8, "width": 8}
    processor.do_pad = None  # what other image processors know, left unset
    processor.save_pretrained(tmp_path)
    assert FusionCaptionerImageProcessor.from_pretrained(tmp_path).size == processor.size


def test_the_layout_of_arrays_can_be_said() -> None:
    processor = FusionCaptionerImageProcessor(do_resize=False)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 3), dtype=np.uint8)  # either way an image
    first, last = (
        processor(image, input_data_format=layout)["pixel_values"]
        for image, layout in ((pixels, "channels_first"), (np.moveaxis(pixels, 0, -1), "channels_last"))
    )
    assert first.shape == (1, 3, 40, 3)
    np.testing.assert_array_equal(first, last)
    assert processor(pixels, input_data_format="channels_last")["pixel_values"].shape == (1, 3, 3, 40)
    with pytest.raises(ValueError, match=r"`input_data_format` \('HWC'\) must be 'channels_first' or"):
        processor(pixels, input_data_format="HWC")

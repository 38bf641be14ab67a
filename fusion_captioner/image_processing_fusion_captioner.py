"""Images of any kind to `pixel_values`, with Pillow and NumPy alone.

Legend: B: batch, F: frames of a video, H, W: height and width in pixels.
"""

import json
import math
import numbers
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict
from weakref import WeakKeyDictionary, ref

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ChannelDimension, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from .image_loading import RESIZE_MODES, images_to_pixel_values, normalization


class FusionCaptionerImageProcessorKwargs(TypedDict, total=False):
    """The settings of [`FusionCaptionerImageProcessor`], each of which a single call may override."""

    do_convert_rgb: bool | None
    do_resize: bool | None
    size: int | list[int] | tuple[int, ...] | dict[str, int] | None
    resize_mode: str | None
    resample: int | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: float | list[float] | tuple[float, ...] | None
    image_std: float | list[float] | tuple[float, ...] | None


SETTINGS = tuple(FusionCaptionerImageProcessorKwargs.__annotations__)
# What transformers itself writes and sets besides the settings
_MACHINERY = ("auto_map", "feature_extractor_type", "image_processor_type", "processor_class", "use_fast")
# The processor that each image processor is part of. Pipelines hold the parts of a processor, and save those alone.
_WHOLES: WeakKeyDictionary = WeakKeyDictionary()
_REPLACEMENTS = {
    "crop_size": "`size` with `resize_mode='crop'`",
    "do_center_crop": "`resize_mode='crop'`",
    "do_pad": "`resize_mode`, since all images of a batch have the same size",
}


class FusionCaptionerImageProcessor(PilBackend):
    """Images to `pixel_values`: upright, RGB, resized, rescaled and normalised.

    Every argument is also a field of `preprocessor_config.json` and a keyword of each call.

    Args:
        do_convert_rgb: always True; the model takes RGB.
        do_resize: if False, images keep their size, which must then be the same for all of a batch.
        size: `{"height": H, "width": W}` of the result in pixels; a single number stands for a square.
        resize_mode: `"squash"` changes the proportions and keeps everything, as Flickr8k's usual preparation does;
            `"crop"` scales the shorter side to `size` and cuts the middle out, as ImageNet evaluation does.
        resample: Pillow's filter, by number (`PIL.Image.Resampling`), by default bicubic.
        do_rescale, rescale_factor: whether pixel values of 0..255 are multiplied, and by what (1/255).
        do_normalize, image_mean, image_std: whether `(value - mean) / std` follows, with a number for each of red,
            green and blue, by default those of ImageNet.

    Raises:
        ValueError: a setting that is unknown or does not fit.
    """

    # Not transformers' ImagesKwargs: half of those settings would do nothing here, and these are refused
    valid_kwargs = FusionCaptionerImageProcessorKwargs  # type: ignore[assignment]

    do_convert_rgb = True
    do_resize = True
    size = SizeDict(height=224, width=224)
    resize_mode = "squash"
    resample = Image.Resampling.BICUBIC
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    def __init__(self, **kwargs: Any) -> None:
        for key, value in kwargs.items():
            _check_known(key, value)
        given = {name: kwargs[name] for name in SETTINGS if kwargs.get(name) is not None}
        defaults = {name: getattr(type(self), name) for name in SETTINGS}
        super().__init__(**{**kwargs, **_checked({**defaults, **given})})

    def belong_to(self, processor: Any) -> None:
        """Make `save_pretrained` save all of `processor`, of which this is a part."""
        _WHOLES[self] = ref(processor)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in transformers. If it is part of a processor, or a captioner's tokenizer is already in the folder (a
        pipeline saves it so), the whole processor is saved, with its tokenizer and chat template."""
        processor = _WHOLES[self]() if self in _WHOLES else None
        folder = Path(save_directory)
        beside_model = processor is None and _is_checkpoint(folder)
        if beside_model and (folder / "tokenizer_config.json").is_file():
            from transformers import AutoTokenizer

            from .processing_fusion_captioner import FusionCaptionerProcessor

            tokenizer = AutoTokenizer.from_pretrained(folder)
            processor = FusionCaptionerProcessor(self, tokenizer, chat_template=tokenizer.chat_template)
        save = super().save_pretrained if processor is None else processor.save_pretrained
        files = save(save_directory, push_to_hub=push_to_hub, **kwargs)
        if beside_model and processor is None:
            # where pipelines ask no question: from the other file they guess the name of a video processor
            alone = folder / IMAGE_PROCESSOR_NAME
            content = {"image_processor": json.loads(alone.read_text(encoding="utf-8"))}
            (folder / PROCESSOR_NAME).write_text(json.dumps(content, indent=2), encoding="utf-8")
            alone.unlink()
        return files

    def __setattr__(self, key: str, value: Any) -> None:
        # what is set is saved, and what is saved must load again
        if not hasattr(type(self), key):
            _check_known(key, value)
        super().__setattr__(key, value)

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Read and prepare one or several images, or videos as lists of frames.

        Args:
            images: an image of any kind that [`load_image`] opens, a list of images, or a list of lists (or an array
                of one more dimension) for videos: one list of frames per video, all of the same length. Lists
                with one image each count as images.
            return_tensors: `"pt"` for torch tensors, `"np"` or None for NumPy arrays.
            input_data_format: `"channels_first"` or `"channels_last"`, how arrays and tensors are laid out; by default
                it is recognised by their shape.
            kwargs: settings of this class, for this call.

        Returns:
            `pixel_values`, float32: (B, 3, H, W), for videos (B, F, 3, H, W).

        Raises:
            ValueError: an image that cannot be read (or FileNotFoundError, OSError); no images; videos of different
                numbers of frames; images of different sizes with `do_resize=False`; a setting that does not fit.
        """
        for key, value in kwargs.items():
            if key not in SETTINGS:
                _check_known(key, value)
        overrides = {name: kwargs[name] for name in SETTINGS if kwargs.get(name) is not None}
        settings = _checked({name: getattr(self, name) for name in SETTINGS} | overrides)
        videos, are_videos = _as_videos(images)
        frames = [_channels_last(frame, input_data_format) for video in videos for frame in video]
        pixel_values = images_to_pixel_values(frames, settings, _names(videos, are_videos), _num_threads())
        if are_videos:
            pixel_values = pixel_values.reshape(len(videos), -1, *pixel_values.shape[1:])
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


def _num_threads() -> int:
    """Those of torch, which a data loader's workers have one of; 1 where torch is not loaded."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else 1


def _as_videos(images: Any) -> tuple[list[list[Any]], bool]:
    """A list of lists of frames, whatever the nesting was, and whether they are videos rather than images."""
    samples = list(images) if _is_nested(images) or _dimensions(images) >= 4 else [images]
    if not samples:
        raise ValueError("`images` is empty; give at least one image.")
    nested = [_is_nested(sample) or _dimensions(sample) >= 4 for sample in samples]
    if any(nested) and not all(nested):
        raise ValueError("`images` mixes images and lists of frames; give a list of either.")
    videos = [list(sample) for sample in samples] if all(nested) else [[sample] for sample in samples]
    frame_counts = sorted({len(video) for video in videos})
    if frame_counts[0] == 0 or len(frame_counts) > 1:
        raise ValueError(
            f"`images` holds samples of {', '.join(map(str, frame_counts))} frames; give each sample the same number, "
            "at least one."
        )
    return videos, frame_counts[0] > 1


def _is_nested(images: Any) -> bool:
    # Sequence: `dataset["image"]` is a `datasets.Column`
    return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)


def _dimensions(image: Any) -> int:
    return getattr(image, "ndim", 0)


def _names(videos: list[list[Any]], are_videos: bool) -> list[str | None]:
    """What error messages call an image in memory; None for those that have a path."""
    names: list[str | None] = []
    for index, video in enumerate(videos):
        for frame_index, frame in enumerate(video):
            has_path = isinstance(frame, str | os.PathLike) or (isinstance(frame, dict) and frame.get("path"))
            position = f"images[{index}][{frame_index}]" if are_videos else f"images[{index}]"
            names.append(None if has_path else position)
    return names


def _channels_last(frame: Any, layout: str | ChannelDimension | None) -> Any:
    """The frame as an array `(H, W, C)` where it is an array or tensor whose layout is given, else as it is."""
    if layout is None or _dimensions(frame) != 3:
        return frame
    try:
        first = ChannelDimension(layout) is ChannelDimension.FIRST
    except ValueError as error:
        raise ValueError(f"`input_data_format` ({layout!r}) must be 'channels_first' or 'channels_last'.") from error
    array = np.asarray(frame)
    return np.moveaxis(array, 0, -1) if first else array


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder has a model of this package."""
    config = folder / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "fusion_captioner"


def _check_known(key: str, value: Any) -> None:
    """Refuse what is no setting, unless it is transformers' own, or a setting of other image processors left unset."""
    unset = value is None and key in ImagesKwargs.__annotations__
    if key not in SETTINGS and key not in _MACHINERY and not key.startswith("_") and not unset:
        raise ValueError(_unknown(key))


def _unknown(key: str) -> str:
    if key in _REPLACEMENTS:
        return f"`{key}` is no setting of FusionCaptionerImageProcessor; use {_REPLACEMENTS[key]}."
    return f"`{key}` is no setting of FusionCaptionerImageProcessor; its settings are {', '.join(SETTINGS)}."


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings in their final types, or a ValueError that names the one at fault."""
    for name in ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"):
        if not isinstance(settings[name], bool):
            raise ValueError(f"`{name}` ({settings[name]!r}) must be true or false.")
    if not settings["do_convert_rgb"]:
        raise ValueError("`do_convert_rgb` (False) must be true: the model takes RGB.")
    if settings["resize_mode"] not in RESIZE_MODES:
        raise ValueError(
            f"`resize_mode` ({settings['resize_mode']!r}) must be one of {', '.join(map(repr, RESIZE_MODES))}."
        )
    factor = settings["rescale_factor"]
    if not _is_number(factor) or factor <= 0:
        raise ValueError(f"`rescale_factor` ({factor!r}) must be a positive number, such as 1/255.")
    try:
        resample = Image.Resampling(settings["resample"])
    except ValueError:
        known = ", ".join(f"{filter.value} ({filter.name.lower()})" for filter in Image.Resampling)
        raise ValueError(f"`resample` ({settings['resample']!r}) must be one of {known}.") from None
    mean, std = (_per_channel(settings[name], name) for name in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise ValueError(f"`image_std` ({settings['image_std']!r}) must be positive.")
    normalization(mean, std, factor)
    return {
        **settings,
        "size": _checked_size(settings["size"]),
        "resample": resample,
        "image_mean": mean,
        "image_std": std,
    }


def _checked_size(size: Any) -> SizeDict:
    error = f'`size` ({size!r}) must be {{"height": H, "width": W}} in whole pixels, or one number for a square'
    if isinstance(size, numbers.Integral):
        size = (size, size)
    if isinstance(size, SizeDict | dict):
        keys = dict(size)
        if "shortest_edge" in keys:
            raise ValueError(f"{error}; for a shortest edge also set `resize_mode='crop'`.")
        size = (keys.get("height"), keys.get("width")) if set(keys) == {"height", "width"} else ()
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise ValueError(f"{error}.")
    if not all(isinstance(side, numbers.Integral) and not isinstance(side, bool) and int(side) > 0 for side in size):
        raise ValueError(f"{error}.")
    return SizeDict(height=int(size[0]), width=int(size[1]))


def _per_channel(value: Any, name: str) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, list | tuple | np.ndarray) else (value,) * 3
    if len(values) != 3 or not all(map(_is_number, values)):
        raise ValueError(f"`{name}` ({value!r}) must be three numbers, for red, green and blue.")
    return tuple(map(float, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


FusionCaptionerImageProcessor.register_for_auto_class()  # so that saving ships this file as remote code

__all__ = ["FusionCaptionerImageProcessor"]

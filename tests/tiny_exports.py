"""A processor for tiny captioners."""

from collections.abc import Callable
from pathlib import Path

from tiny_models import tiny_tokenizer

from fusion_captioner import FusionCaptionerImageProcessor, FusionCaptionerProcessor

# the fixture `export`
Export = Callable[..., Path]


def tiny_processor(size: int = 32) -> FusionCaptionerProcessor:
    image_processor = FusionCaptionerImageProcessor(size={"height": size, "width": size}, resize_mode="crop")
    return FusionCaptionerProcessor(image_processor, tiny_tokenizer())

"""Tiny captioners that are exported, and a processor for them."""

from collections.abc import Callable
from pathlib import Path

from tiny_models import calibrate, pixels, tiny_model, tiny_tokenizer

from fusion_captioner import (
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerImageProcessor,
    FusionCaptionerProcessor,
)

# the fixture `export`
Export = Callable[..., Path]


def tiny_processor(size: int = 32) -> FusionCaptionerProcessor:
    image_processor = FusionCaptionerImageProcessor(size={"height": size, "width": size}, resize_mode="crop")
    return FusionCaptionerProcessor(image_processor, tiny_tokenizer())


def image_size(**fields) -> int:
    return fields.get("vision_config", {}).get("image_size", 32)


def exported_model(**fields) -> FusionCaptionerForConditionalGeneration:
    """The captioner that the fixture `export` exports with these fields."""
    model = tiny_model(**fields)
    if "vision_config" in fields:
        calibrate(model.model.image_encoder, pixels(3, size=image_size(**fields)))
    return model

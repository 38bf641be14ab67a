"""A captioner that says what colour a picture of one colour has, and takes as long as it is told."""

import sys
import time
from typing import Any

from PIL import Image

IMAGE_SETTINGS = {"do_resize": True, "size": {"height": 4, "width": 6}, "resize_mode": "squash", "resample": 3}


class FakeCaptioner:
    def __init__(self, seconds_a_batch: float = 0.0) -> None:
        self.seconds_a_batch = seconds_a_batch
        self.image_settings = IMAGE_SETTINGS
        self.batches: list[list[str]] = []
        self.settings: dict[str, Any] = {}

    def caption(
        self, images: list[Image.Image], prompt: str, *, seed: int | None = None, **settings: Any
    ) -> list[list[str]]:
        print("a batch begins", file=sys.stderr, flush=True)
        time.sleep(self.seconds_a_batch)
        self.settings = settings
        assert all(image.size == (6, 4) for image in images)
        self.batches.append([f"red {image.getpixel((0, 0))[0]}" for image in images])
        number = settings.get("num_return_sequences", 1)
        return [[text, *(f"{text}, {more}" for more in range(1, number))] for text in self.batches[-1]]

    @property
    def captions(self) -> list[str]:
        """All that it has said."""
        return [caption for batch in self.batches for caption in batch]

"""A captioner that names the colour of a picture, and requests for it."""

import base64
import io
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

IMAGE_SETTINGS = {"do_resize": True, "size": {"height": 4, "width": 6}, "resize_mode": "squash", "resample": 3}


class ColourCaptioner:
    """
    Says `a picture of red 200`, with the prompt in front; `fault` in a prompt is a fault of the captioner, and more
    than ten words are a prompt that is too long.

    `gate` is open; while it is closed, batches wait for it.
    """

    image_settings = IMAGE_SETTINGS

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.calls: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()

    class tokenizer:
        @staticmethod
        def encode(text: str, add_special_tokens: bool) -> Any:
            return type("Encoding", (), {"ids": text.split()})

    def caption(
        self, images: list[Image.Image], prompt: str | Sequence[str], *, seed: int | None = None, **settings: Any
    ) -> list[list[str]]:
        self.batches.append(len(images))
        self.calls.append({"prompts": prompt, "seed": seed, **settings})
        assert self.gate.wait(30) and all(image.size == (6, 4) for image in images)
        if any("fault" in text for text in prompt):
            raise RuntimeError("out of order")
        if any(len(text.split()) > 10 for text in prompt):
            raise ValueError("a prompt is too long; shorten it.")
        return [
            [f"{text} a picture of red {image.getpixel((0, 0))[0]}".strip()] * settings["num_return_sequences"]
            for image, text in zip(images, prompt, strict=True)
        ]


def photo(red: int = 200, size: tuple[int, int] = (60, 40), kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (red, 30, 30)).save(content, kind)
    return content.getvalue()


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def chat(url: str, text: str = "", **fields: Any) -> dict[str, Any]:
    """The body of a request for a chat completion."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}]
    if text:
        parts.append({"type": "text", "text": text})
    return {"model": "colours", "messages": [{"role": "user", "content": parts}], **fields}


# the fixture `serve`
Serve = Callable[..., str]


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)

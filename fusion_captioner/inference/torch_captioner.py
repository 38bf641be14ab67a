"""A checkpoint on torch, with the face of an exported captioner."""

from collections.abc import Sequence
from typing import Any

import torch

from fusion_captioner.image_loading import ImageSource
from fusion_captioner.image_processing_fusion_captioner import SETTINGS
from fusion_captioner.inference.loading import load_captioner


class TorchCaptioner:
    """
    A captioner from a folder or the Hub.

    Args:
        name, revision: see `load_captioner`.
        num_threads: of torch, in the whole program; by default they stay as they are.
    """

    def __init__(self, name: str, revision: str = "main", num_threads: int | None = None) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.model: Any  # GenerationMixin's types are narrower than what it takes
        self.model, self.processor = load_captioner(name, revision)

    @property
    def image_settings(self) -> dict[str, Any]:
        """What images are made into, as in `ExportedCaptioner.image_settings`."""
        return {name: getattr(self.processor.image_processor, name) for name in SETTINGS}

    @torch.inference_mode()
    def caption(
        self, images: Sequence[ImageSource], prompt: str = "", *, seed: int | None = None, **settings: Any
    ) -> list[list[str]]:
        """Captions, `num_return_sequences` of each image; arguments as in `ExportedCaptioner.caption`."""
        if seed is not None:
            torch.manual_seed(seed)
        inputs = self.processor(images=list(images), text=[prompt] * len(images), return_tensors="pt")
        generated = self.model.generate(**inputs.to(self.model.device), **settings)[:, inputs["input_ids"].shape[1] :]
        texts = [text.strip() for text in self.processor.batch_decode(generated, skip_special_tokens=True)]
        per_image = len(texts) // len(images)
        return [texts[start : start + per_image] for start in range(0, len(texts), per_image)]

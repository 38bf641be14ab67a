"""Rows to batches: images are decoded here, or their cached features read, and captions become tokens.

B: images, k: captions of an image, L: tokens, P: regions, Dv: width of a region
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fusion_captioner.data.annotated_images import bad_image_error
from fusion_captioner.data.augmentation import augment
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.image_files import open_image

logger = logging.getLogger(__name__)


class ImageCollator:
    """
    What all collators do: the images of the rows as tensors, bad ones raised or left out.

    Attributes:
        keeps_image_ids: whether batches have `image_ids` (list of str, one per image), which the trainers of this
            package need and the models do not take.
    """

    def __init__(
        self, processor: Any, prompt: str = "", dtype: torch.dtype = torch.float32, skip_bad_images: bool = False
    ) -> None:
        self.processor = processor
        self.prompt = prompt
        self.dtype = dtype
        self.skip_bad_images = skip_bad_images
        self.num_skipped = 0
        self.keeps_image_ids = False

    def _images(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], dict[str, torch.Tensor]]:
        """The rows that are left, and `image_hidden_states` or `pixel_values` of them."""
        if not rows:
            raise ValueError("the batch is empty; check the size of the split and of its batches.")
        cached = sum("image_hidden_states" in row for row in rows)
        if cached == len(rows):
            return list(rows), {"image_hidden_states": stack_features(rows, self.dtype)}
        if cached:
            raise ValueError(
                f"{cached} of {len(rows)} rows hold cached features, the others images; give all the same."
            )
        return self.read_images(rows)

    def read_images(
        self, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], dict[str, torch.Tensor]]:
        """The rows whose `image` can be decoded, and `pixel_values` (B, 3, H, W) of them."""
        kept, pictures = [], []
        for row in rows:
            try:
                picture = open_image(row["image"], row["image_id"], self.processor.image_processor)
            except (OSError, ValueError) as error:
                if not self.skip_bad_images:
                    raise bad_image_error(error) from error
                self.num_skipped += 1
                logger.warning("image left out of its batch (the %d. of this process): %s", self.num_skipped, error)
                continue
            if "augmentations" in row:
                names, seed = row["augmentations"]
                asked = row.get("prompts", [])
                picture, texts = augment(picture, row["captions"] + asked, names, seed)
                row = {**row, "captions": texts[: len(row["captions"])], "prompts": texts[len(row["captions"]) :]}
            pictures.append(picture)
            kept.append(row)
        if not pictures:
            raise ValueError(
                f"none of the {len(rows)} images of a batch can be decoded (image_id {rows[0]['image_id']!r}, ...); "
                "check the folder of the images."
            )
        pixel_values = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return kept, {"pixel_values": pixel_values.to(self.dtype)}


class CaptionCollator(ImageCollator):
    """Batches to learn captions from.

    Args:
        processor: a `FusionCaptionerProcessor`.
        prompt: text in front of every caption; it is not learned. A row may bring its own as `prompt`, or
            one for each caption as `prompts`.
        max_length: tokens at most, prompt and caption together; by default the tokenizer's `model_max_length`.
        dtype: of `pixel_values` and `image_hidden_states`.
        skip_bad_images: leave an image that cannot be decoded out of its batch, with a warning, instead of raising.
        data: training data whose cached features may go out of date, for [`refresh`]; batches then have `image_ids`.
            `FusionCaptionerTrainer` sets it.
    """

    def __init__(
        self,
        processor: Any,
        prompt: str = "",
        max_length: int | None = None,
        dtype: torch.dtype = torch.float32,
        skip_bad_images: bool = False,
        data: CaptionDataset | None = None,
    ) -> None:
        super().__init__(processor, prompt, dtype, skip_bad_images)
        self.max_length = max_length
        self.data = data
        self.keeps_image_ids = data is not None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: of a [`~fusion_captioner.data.caption_sampling.CaptionDataset`], k captions each.

        Returns:
            `pixel_values` (B, 3, H, W) or `image_hidden_states` (B, P, Dv), and `input_ids`, `attention_mask` and
            `labels` (B·k, L), the captions of an image together.

        Raises:
            FileNotFoundError, OSError, ValueError: an image cannot be decoded, or none of the batch; the number of
                captions differs between the rows; some rows hold features and others images.
        """
        kept, batch = self._images(rows)
        return batch | self._captions(kept)

    def refresh(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """
        A batch without `image_ids`, and with images in place of cached features that are out of date: data loaders
        prefetch, so that some batches are made before the image encoder is unfrozen.
        """
        fresh = dict(batch)
        image_ids = fresh.pop("image_ids", None)
        if image_ids and "image_hidden_states" in fresh and self.data is not None and self.data.has_outdated_features:
            del fresh["image_hidden_states"]
            fresh |= self.read_images(self.data.images_of(image_ids))[1]
        return fresh

    def _captions(self, kept: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        numbers = {len(row["captions"]) for row in kept}
        if len(numbers) > 1:
            raise ValueError(
                f"the images of a batch have {min(numbers)} to {max(numbers)} captions; draw the same number of each "
                "(`captions_per_image`)."
            )
        captions = [caption for row in kept for caption in row["captions"]]
        prompts = [
            prompt
            for row in kept
            for prompt in row.get("prompts") or [row.get("prompt", self.prompt)] * len(row["captions"])
        ]
        language = [each for row in kept for each in row["languages"]] if "languages" in kept[0] else None
        texts = self.processor(
            text=prompts, text_target=captions, language=language, max_length=self.max_length, return_tensors="pt"
        )
        names = {"image_ids": [row["image_id"] for row in kept]} if self.keeps_image_ids else {}
        return dict(texts) | names


class SelfCriticalCollator(CaptionCollator):
    """Batches for [`~fusion_captioner.training.self_critical.trainer.SelfCriticalTrainer`]: those of
    `CaptionCollator`, `prompts` to sample from (`input_ids` and `attention_mask` (B, L), padded on the left),
    `image_ids` (list of B str), and with several languages `languages` (list of B str): an image is captioned in the
    language of the first caption that was drawn for it."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        kept, batch = self._images(rows)
        languages = {"languages": [row["languages"][0] for row in kept]} if "languages" in kept[0] else {}
        prompts = self.processor(
            text=[row.get("prompt", self.prompt) for row in kept],
            language=languages.get("languages"),
            return_tensors="pt",
        )
        names = {"prompts": dict(prompts), "image_ids": [row["image_id"] for row in kept]} | languages
        return batch | self._captions(kept) | names


def stack_features(rows: Sequence[Mapping[str, Any]], dtype: torch.dtype) -> torch.Tensor:
    """The `image_hidden_states` of the rows as one tensor (B, P, Dv).

    Row by row from the mapped file into the batch: stacking first and converting then takes five times as long.
    """
    batch = torch.empty((len(rows), *rows[0]["image_hidden_states"].shape), dtype=dtype)
    for target, row in zip(batch, rows, strict=True):
        target.copy_(row["image_hidden_states"])
    return batch

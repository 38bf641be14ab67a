"""Labelled rows to batches.

B: rows, L: tokens
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from fusion_captioner.training.collating import ImageCollator
from fusion_captioner.training.row_arguments import MODALITIES


class LabelCollator(ImageCollator):
    """Batches to learn labels from.

    Args:
        processor: a `FusionCaptionerProcessor`; texts that are longer than its tokenizer allows lose their end.
        modalities: what the model is given, of `image` and `text`.
        skip_bad_images: leave an image that cannot be decoded out of its batch, with a warning, instead of raising.
    """

    def __init__(
        self, processor: Any, modalities: Collection[str] = MODALITIES, skip_bad_images: bool = False
    ) -> None:
        super().__init__(processor, skip_bad_images=skip_bad_images)
        self.modalities = modalities

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: of a [`~fusion_captioner.training.row_dataset.RowDataset`], with `text` and `label`.

        Returns:
            those of `pixel_values` (B, 3, H, W) or `image_hidden_states` (B, P, Dv), and `input_ids` and
            `attention_mask` (B, L), that the model is given; `labels` (B,); and `rows` (B,), their numbers.

        Raises:
            FileNotFoundError, OSError, ValueError: an image cannot be decoded, or none of the batch.
        """
        kept, batch = self._images(rows) if "image" in self.modalities else (list(rows), {})
        if "text" in self.modalities:
            texts = [row["text"] for row in kept]
            batch |= dict(self.processor(text=texts, add_eos=True, truncation=True, return_tensors="pt"))
        return batch | {
            "labels": torch.tensor([row["label"] for row in kept]),
            "rows": torch.tensor([row["row"] for row in kept]),
        }

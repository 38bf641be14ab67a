"""Rows of image and text to batches; [`LabelCollator`] and [`ChoiceCollator`] build on it.

B: rows
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from fusion_captioner.data.arguments import MODALITIES
from fusion_captioner.data.collating import ImageCollator

Row = Mapping[str, Any]


class ModalityCollator(ImageCollator, ABC):
    """
    Batches to learn from rows of a [`~fusion_captioner.data.row_dataset.RowDataset`], with `label`.

    Args:
        processor: a `FusionCaptionerProcessor`.
        modalities: what the model is given, of `image` and `text`.
        skip_bad_images: leave an image that cannot be decoded out of its batch, with a warning, instead of raising.
    """

    def __init__(
        self, processor: Any, modalities: Collection[str] = MODALITIES, skip_bad_images: bool = False
    ) -> None:
        super().__init__(processor, skip_bad_images=skip_bad_images)
        self.modalities = modalities

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """
        Returns:
            inputs of the modalities that are given; `labels`, a row each; and `rows` (B,), their numbers.

        Raises:
            FileNotFoundError, OSError, ValueError: an image cannot be decoded, or none of the batch.
        """
        kept, batch = self._images(rows) if "image" in self.modalities else (list(rows), {})
        if "text" in self.modalities:
            batch |= self._texts(kept)
        return batch | {
            "labels": torch.tensor([row["label"] for row in kept]),
            "rows": torch.tensor([row["row"] for row in kept]),
        }

    @abstractmethod
    def _texts(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` of the rows."""

"""Rows of a task for the data loader, each with its image or the image's cached features."""

from collections.abc import Sequence
from typing import Any

import datasets
import torch

from fusion_captioner.training.feature_shards import ImageFeatures


class RowDataset(torch.utils.data.Dataset):
    """
    The columns of `rows`, and `row` (its number), for a collator.

    For the Trainer: set `remove_unused_columns=False`.

    Args:
        rows: columns `image` and `image_id`, and those of the task.
        features: cached features to give, as `image_hidden_states`, instead of images.
        reads_images: whether images are wanted at all.

    Raises:
        ValueError: cached features lack an image.
    """

    def __init__(
        self, rows: datasets.Dataset, features: ImageFeatures | None = None, reads_images: bool = True
    ) -> None:
        self.rows = rows
        self.features = features
        without_image = [column for column in rows.column_names if column != "image"]
        self._read = rows if reads_images and features is None else rows.select_columns(without_image)
        if features is not None:
            features.require(rows["image_id"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a batch, read at once."""
        columns = self._read[list(indices)]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for row, index in zip(rows, indices, strict=True):
            row["row"] = int(index)
            if self.features is not None:
                row["image_hidden_states"] = self.features[row["image_id"]]
        return rows

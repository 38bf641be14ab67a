"""Rows of a task for the data loader, each with its image or frames, or their cached features."""

from collections.abc import Sequence
from typing import Any

import datasets
import torch

from fusion_captioner.data.feature_shards import ImageFeatures

# Columns of undecoded images, and beside each that of their ids: of an image a row, or of the frames of a clip
IMAGE_COLUMNS = {"image": "image_id", "frames": "frame_ids"}


class RowDataset(torch.utils.data.Dataset):
    """
    The columns of `rows`, and `row` (its number), for a collator.

    For the Trainer: set `remove_unused_columns=False`.

    Args:
        rows: `image` and `image_id`, or `frames` and `frame_ids`, and the columns of the task.
        features: cached features to give, as `image_hidden_states`, instead of images: (P, Dv), of frames (F, P, Dv).
        reads_images: whether images are wanted at all.

    Raises:
        ValueError: cached features lack an image.
    """

    def __init__(
        self, rows: datasets.Dataset, features: ImageFeatures | None = None, reads_images: bool = True
    ) -> None:
        self.rows = rows
        self.features = features
        without_images = [column for column in rows.column_names if column not in IMAGE_COLUMNS]
        self._read = rows if reads_images and features is None else rows.select_columns(without_images)
        if features is not None:
            features.require(image_id for ids in image_ids(rows) for image_id in ids)

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
            if self.features is not None and "frame_ids" in row:
                frames = [self.features[image_id] for image_id in row["frame_ids"]]
                row["image_hidden_states"] = torch.stack(frames)
            elif self.features is not None:
                row["image_hidden_states"] = self.features[row["image_id"]]
        return rows


def image_ids(rows: datasets.Dataset) -> list[list[str]]:
    """The ids of the images of every row."""
    if "frame_ids" in rows.column_names:
        return rows["frame_ids"]
    return [[image_id] for image_id in rows["image_id"]]


def rows_with_features(rows: datasets.Dataset, features: ImageFeatures) -> datasets.Dataset:
    """The rows all of whose images have cached features: those that could be decoded."""
    kept = [number for number, ids in enumerate(image_ids(rows)) if all(image_id in features for image_id in ids)]
    return rows if len(kept) == len(rows) else rows.select(kept)

"""Rows of tasks other than captioning to batches: image or frames, or their cached features, and texts.

B: rows, C: labels, N: choices, L: tokens, F: frames, P: regions, Dv: width of a region
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import datasets
import torch

from fusion_captioner.data.annotated_images import bad_image_error
from fusion_captioner.data.arguments import MODALITIES
from fusion_captioner.data.collating import ImageCollator
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.image_files import open_image

Row = Mapping[str, Any]
# Columns of undecoded images, each with that of their ids: one image per row, or the frames of a clip
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


class ModalityCollator(ImageCollator, ABC):
    """
    Batches to learn from rows of a [`RowDataset`], with `label`.

    Args:
        processor: a `FusionCaptionerProcessor`.
        modalities: what the model is given, of `image` and `text`.
        skip_bad_images: leave an image that cannot be decoded out of its batch, with a warning, instead of raising.

    Attributes:
        keeps_row_numbers: whether batches have the numbers of their rows, which the trainer of these tasks needs and
            the models do not take.
    """

    def __init__(
        self, processor: Any, modalities: Collection[str] = MODALITIES, skip_bad_images: bool = False
    ) -> None:
        super().__init__(processor, skip_bad_images=skip_bad_images)
        self.modalities = modalities
        self.keeps_row_numbers = False

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """
        Returns:
            inputs of the modalities that are given; `labels`, one per row; and where `keeps_row_numbers` `rows` (B,).

        Raises:
            FileNotFoundError, OSError, ValueError: an image cannot be decoded, or none of the batch.
        """
        kept, batch = self._images(rows) if "image" in self.modalities else (list(rows), {})
        if "text" in self.modalities:
            batch |= self._texts(kept)
        batch |= {"labels": torch.tensor([row["label"] for row in kept])}
        if self.keeps_row_numbers:
            batch["rows"] = torch.tensor([row["row"] for row in kept])
        return batch

    @abstractmethod
    def _texts(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` of the rows."""


class LabelCollator(ModalityCollator):
    """
    Batches to learn labels from: `pixel_values` (B, 3, H, W) or `image_hidden_states` (B, P, Dv), and `input_ids` and
    `attention_mask` (B, L) of `text`, whichever the model is given; `labels` (B,), of several a row (B, C).

    Texts that are longer than the processor's tokenizer allows lose their end. Arguments as of [`ModalityCollator`].
    """

    def _texts(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        texts = [row["text"] for row in rows]
        return dict(self.processor(text=texts, add_eos=True, truncation=True, return_tensors="pt"))


class ChoiceCollator(ModalityCollator):
    """
    Batches to learn right choices from: where images are given `pixel_values` (B, 3, H, W), of frames (B, F, 3, H, W),
    or `image_hidden_states` (B, P, Dv), of frames (B, F, P, Dv); `input_ids` and `attention_mask` (B, N, L) of
    `question` and `choices`; `labels` (B,).

    A question that is longer than the processor's tokenizer allows is an error, and so is a frame that cannot be
    decoded, `skip_bad_images` or not. Arguments as of [`ModalityCollator`].
    """

    def _images(self, rows: Sequence[Row]) -> tuple[list[Any], dict[str, torch.Tensor]]:
        if "frames" not in rows[0]:
            return super()._images(rows)
        try:
            videos = [
                [
                    open_image(frame, frame_id, self.processor.image_processor)
                    for frame, frame_id in zip(row["frames"], row["frame_ids"], strict=True)
                ]
                for row in rows
            ]
        except (OSError, ValueError) as error:
            raise bad_image_error(error) from error
        return list(rows), {"pixel_values": self.processor(images=videos, return_tensors="pt")["pixel_values"]}

    def _texts(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        questions, choices = [row["question"] for row in rows], [row["choices"] for row in rows]
        return dict(self.processor(text=questions, choices=choices, return_tensors="pt"))

"""Which captions of an image a training epoch sees: some drawn at random, or all of them.

What is drawn is a function of seed, epoch and image id alone. So neither the order of the images, nor the number of
data-loader workers or processes, nor a restart in the middle of an epoch changes it.
"""

import itertools
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from random import Random
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fusion_captioner.data.augmentation import draws_flip, swap_sides
from fusion_captioner.data.feature_shards import ImageFeatures

# Columns with an entry for each caption of an image, besides `captions`.
OF_CAPTIONS = ("prompts", "languages")


def draw_captions(captions: Sequence[str], count: int, seed: int, epoch: int, image_id: str) -> list[str]:
    """`count` captions of one image for one epoch; see [`draw_numbers`]."""
    return [captions[number] for number in draw_numbers(len(captions), count, seed, epoch, image_id)]


def draw_numbers(total: int, count: int, seed: int, epoch: int, image_id: str) -> list[int]:
    """`count` of the numbers below `total`, those of an image's captions, for one epoch.

    The captions are shuffled and dealt out without replacement; when fewer than `count` are left, they are shuffled
    anew. So an image's five captions are all seen in five epochs of one caption, and no epoch sees one of them twice.
    Only when `count` exceeds their number are captions repeated.
    """
    deals = max(1, total // count)
    shuffle, deal = divmod(epoch, deals)

    def rank(number: int) -> bytes:
        return blake2b(f"{seed}/{shuffle}/{number}/{image_id}".encode(), digest_size=8).digest()

    order = sorted(range(total), key=rank)
    return [order[position % total] for position in range(deal * count, (deal + 1) * count)]


class CaptionDataset(torch.utils.data.Dataset):
    """Rows for [`~fusion_captioner.data.collating.CaptionCollator`] out of images with several captions.

    A row has `image_id`, `captions` (list of str, as many in every row) and either `image` (undecoded) or
    `image_hidden_states` (float16 array of shape (P, Dv), P: regions, Dv: their width; a view of the feature cache);
    `prompt`, and `prompts` and `languages` of each caption, where `rows` has such a column.

    For the Trainer: set `remove_unused_columns=False`, and add [`SetCaptionEpoch`] to the callbacks.

    Args:
        rows: columns `image`, `captions`, `image_id`, see
            [`~fusion_captioner.data.caption_datasets.load_caption_dataset`].
        captions_per_image: an image is one row with that many captions, drawn anew every epoch; the model encodes the
            image once for all of them. `"all"`: every caption is a row of its own, in every epoch.
        seed: of the drawing.
        features: cached features to give instead of images, until [`stop_reading_features`].
        augmentations: keys of [`~fusion_captioner.data.augmentation.AUGMENTATIONS`] for the collator to apply to
            images; what they draw is a function of seed, epoch and image id, too.
        mirrored_features: cached features of the mirrored images, read in place of `features` where `flip`, if it is
            among the augmentations, draws so. Other augmentations do nothing to cached features.
        hidden_width: Dv, of `rows` without images: each row then has a region of zeros, which shows nothing.

    Raises:
        ValueError: `captions_per_image` is neither `"all"` nor a positive number, or cached features lack an image.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        captions_per_image: int | str = 1,
        seed: int = 0,
        features: ImageFeatures | None = None,
        augmentations: Sequence[str] = (),
        mirrored_features: ImageFeatures | None = None,
        hidden_width: int | None = None,
    ) -> None:
        _check_captions_per_image(captions_per_image)
        self.captions_per_image = captions_per_image
        self.seed = seed
        self.rows = rows
        self._cached = features
        self.mirrored_features = mirrored_features
        self.augmentations = tuple(augmentations)
        self._further = [name for name in ("prompt", *OF_CAPTIONS) if name in rows.column_names]
        self._texts = rows.select_columns(["captions", "image_id", *self._further])
        self._hidden = None if hidden_width is None else torch.zeros(1, hidden_width, dtype=torch.float16)
        self._images = rows.select_columns(["image"] if hidden_width is None else [])
        for cached in (features, mirrored_features):
            if cached is not None:
                cached.require(self._texts["image_id"])
        # Tensors in shared memory: workers that already run, holding a copy of this object, see the change too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._reads_features = torch.tensor(features is not None).share_memory_()
        self._numbers: dict[str, int] | None = None
        self._first_caption: np.ndarray | None = None
        if captions_per_image == "all":
            lengths = pc.list_value_length(self._texts.with_format("arrow")[:]["captions"])
            self._first_caption = np.concatenate([[0], np.cumsum(lengths.to_numpy())])

    @property
    def epoch(self) -> int:
        """The epoch that captions are drawn for, counted from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw the captions of another epoch from now on."""
        self._epoch.fill_(epoch)

    @property
    def features(self) -> ImageFeatures | None:
        """The cached features, as long as they hold."""
        return self._cached if self._reads_features else None

    @property
    def has_outdated_features(self) -> bool:
        """Whether there were cached features that hold no longer."""
        return self._cached is not None and self.features is None

    def stop_reading_features(self) -> None:
        """Give images from now on: the image encoder is trained, or images are augmented."""
        self._reads_features.fill_(False)

    def images_of(self, image_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of these images, with `image_id` and `image`."""
        if self._numbers is None:
            self._numbers = {image_id: number for number, image_id in enumerate(self._texts["image_id"])}
        images = self._images[[self._numbers[image_id] for image_id in image_ids]]["image"]
        return [{"image_id": image_id, "image": image} for image_id, image in zip(image_ids, images, strict=True)]

    def __len__(self) -> int:
        return len(self._texts) if self._first_caption is None else int(self._first_caption[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a batch, read at once."""
        wanted = np.asarray(indices)
        if self._first_caption is None:
            numbers = wanted
        else:
            numbers = np.searchsorted(self._first_caption, wanted, side="right") - 1
        texts = self._texts[numbers]
        rows: list[dict[str, Any]] = []
        for position, (image_id, captions) in enumerate(zip(texts["image_id"], texts["captions"], strict=True)):
            if self._first_caption is None:
                count = int(self.captions_per_image)
                drawn = draw_numbers(len(captions), count, self.seed, self.epoch, image_id)
            else:
                drawn = [wanted[position] - self._first_caption[numbers[position]]]
            row = {name: texts[name][position] for name in self._further}
            for name in set(OF_CAPTIONS) & set(row):
                row[name] = [row[name][number] for number in drawn]
            rows.append({"image_id": image_id, "captions": [captions[number] for number in drawn]} | row)
        if self._hidden is not None:
            for row in rows:
                row["image_hidden_states"] = self._hidden
        elif (cached := self.features) is not None:
            for row in rows:
                features = cached
                if (
                    self.mirrored_features is not None
                    and "flip" in self.augmentations
                    and draws_flip(row["captions"] + row.get("prompts", []), Random(self._drawn_with(row["image_id"])))
                ):
                    features = self.mirrored_features
                    for name in {"captions", "prompts"} & set(row):
                        row[name] = swap_sides(row[name])
                row["image_hidden_states"] = features[row["image_id"]]
        else:
            for row, image in zip(rows, self._images[numbers]["image"], strict=True):
                row["image"] = image
                if self.augmentations:
                    row["augmentations"] = (self.augmentations, self._drawn_with(row["image_id"]))
        return rows

    def _drawn_with(self, image_id: str) -> str:
        return f"{self.seed}/{self.epoch}/{image_id}"


class StreamedCaptionDataset(torch.utils.data.IterableDataset):
    """[`CaptionDataset`] for a stream: the same rows, with images.

    Args:
        rows: an `IterableDataset` with the columns `image`, `captions`, `image_id`; shuffle it before.
        captions_per_image: see [`CaptionDataset`].
        seed: see [`CaptionDataset`].
        endless: begin anew behind the last row, as the next epoch. To the Trainer, which does not know how long a
            stream is, the whole run is then one epoch, so that a resumed run goes on at the right row.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        captions_per_image: int | str = 1,
        seed: int = 0,
        endless: bool = False,
    ) -> None:
        _check_captions_per_image(captions_per_image)
        self.rows = rows
        self.captions_per_image = captions_per_image
        self.seed = seed
        self.endless = endless
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw the captions, and shuffle the stream, for another epoch from the next iteration on."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A stream of its own: workers share the epoch of `self.rows`, and one may be further than another.
        rows = self.rows.select_columns(["image", "captions", "image_id"])
        for epoch in itertools.count(int(self._epoch)):
            rows.set_epoch(epoch)
            is_empty = True
            for row in rows:
                is_empty = False
                yield from self._drawn(row, epoch)
            # where there are more workers than files, some have no rows at all
            if is_empty or not self.endless:
                return

    def _drawn(self, row: dict[str, Any], epoch: int) -> Iterator[dict[str, Any]]:
        if self.captions_per_image == "all":
            for caption in row["captions"]:
                yield row | {"captions": [caption]}
        else:
            count = int(self.captions_per_image)
            yield row | {"captions": draw_captions(row["captions"], count, self.seed, epoch, row["image_id"])}


class SetCaptionEpoch(TrainerCallback):
    """Tells the training data its epoch. (The Trainer's data loader does so too, but neither when it resumes in the
    middle of an epoch nor in several processes.)"""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        dataset = kwargs["train_dataloader"].dataset
        if hasattr(dataset, "set_epoch"):
            # `state.epoch` is a fraction when resuming within an epoch, and sums of fractions may fall short of it.
            dataset.set_epoch(int((state.epoch or 0) + 1e-6))


def _check_captions_per_image(count: int | str) -> None:
    if count != "all" and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise ValueError(f"`captions_per_image` ({count!r}) must be a number of at least 1, or 'all'.")

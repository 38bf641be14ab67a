"""Grid features of a frozen image encoder, computed once for every image and kept on disk.

Folder of the cache, one for each encoder and preprocessing (see [`encoder_fingerprint`]):

    <cache_dir>/image_hashes.feather                 hashes of the image files, so that no file is read twice
    <cache_dir>/<fingerprint>/about.json             what the fingerprint is made of
    <cache_dir>/<fingerprint>/features-00000.arrow   float16 features by the hash of the image's bytes, and of mirrored
                                                     images by that hash with `-mirrored` behind it

Features are keyed by content: splits and data sets share them, and a changed image is computed anew.
"""

import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import datasets
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from fusion_captioner.data.annotated_images import SkippedExample, bad_image_error, log_skipped
from fusion_captioner.data.augmentation import mirror
from fusion_captioner.data.feature_shards import ImageFeatures, MappedShard, ShardWriter, open_shards, shard_paths
from fusion_captioner.data.image_files import MISSING_IMAGE, open_image
from fusion_captioner.data.image_hashes import ImageHashes
from fusion_captioner.file_locks import wait_for_lock
from fusion_captioner.files import INCOMPLETE, expanded, write_text
from fusion_captioner.fingerprints import fingerprint, without_volatile_keys
from fusion_captioner.image_encoder import ImageEncoder
from fusion_captioner.prefetching import prefetch

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
SHARD_BYTES = 64 * 2**20
# Room that stays free on the disk for everything else.
SPARE_BYTES = 256 * 2**20


class CachedSplit(NamedTuple):
    """A split with its features; `rows` lacks the images that could not be decoded and were skipped."""

    rows: datasets.Dataset
    features: ImageFeatures
    mirrored_features: ImageFeatures | None = None


class _Wanted(NamedTuple):
    """An image whose features are to be computed."""

    split: str
    row: int
    mirrored: bool


def encoder_fingerprint(
    model: PreTrainedModel, image_processor: Any, autocast_dtype: torch.dtype | None = None
) -> str:
    """A hash of what features depend on, apart from the image: the encoder's weights and config, and preprocessing.

    Args:
        model: any Fusion Captioner model.
        image_processor: its image processor.
        autocast_dtype: precision of the matrix products, see [`cached_features`].
    """
    about = _about(model, image_processor, autocast_dtype)
    return fingerprint(about, _image_encoder(model).state_dict())


def cached_features(
    splits: Mapping[str, datasets.Dataset],
    model: PreTrainedModel,
    image_processor: Any,
    cache_dir: str | Path,
    *,
    batch_size: int = 16,
    num_threads: int = 2,
    autocast_dtype: torch.dtype | None = None,
    skip_bad_images: bool = False,
    skipped: list[SkippedExample] | None = None,
    mirrored: Collection[str] = (),
) -> dict[str, CachedSplit]:
    """Grid features of all images of all splits, float16, from the cache; those that are not there are computed first.

    What has to be computed is announced with its size on disk. It is written in shards of 64 MiB: a process that is
    killed loses one shard at most, and the next call goes on behind the last. What damaged shards held is computed
    again. Threads decode the next images while the encoder works. Several processes may call this at once: one
    computes, the others wait.

    The features hold only as long as the encoder is frozen, and images are not augmented otherwise than by mirroring:
    see [`~fusion_captioner.data.caption_sampling.CaptionDataset.stop_reading_features`].

    Args:
        splits: with the columns `image` and `image_id`.
        model: a Fusion Captioner model; its encoder is put into evaluation mode meanwhile.
        image_processor: makes `pixel_values`, all of one size.
        cache_dir: see the head of this file.
        batch_size: images that the encoder takes at once.
        num_threads: threads that decode images.
        autocast_dtype: compute under autocast in this type (`torch.bfloat16` is about 1.4 times faster on new CPUs).
        skip_bad_images: leave out images that cannot be decoded instead of raising at the first.
        skipped: a list that is extended by what was left out.
        mirrored: splits of whose images the mirrored ones are cached, too.

    Returns:
        Split → its rows and their features.

    Raises:
        OSError: too little space on the disk.
        ValueError, FileNotFoundError: an image cannot be decoded (and `skip_bad_images` is false), two images have
            the same id, the number of regions differs between images, or features exceed the range of float16.
    """
    root = expanded(cache_dir).absolute()
    fingerprint = encoder_fingerprint(model, image_processor, autocast_dtype)
    folder = root / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    hashes = ImageHashes(root / "image_hashes.feather")
    keys = {split: hashes.of_rows(rows, split) for split, rows in splits.items()}
    reasons = _missing_files(splits, keys, skip_bad_images)
    with wait_for_lock(folder / ".lock", f"computes features in {folder}"):
        for leftover in folder.glob(f"*{INCOMPLETE}"):
            leftover.unlink()
        index = _index(open_shards(folder, "features", MappedShard, "its features are computed again"))
        missing = {
            _mirrored(key) if is_mirrored else key: _Wanted(split, row, is_mirrored)
            for split, split_keys in keys.items()
            for is_mirrored in ((False, True) if split in mirrored else (False,))
            for row, key in enumerate(split_keys)
            if key is not None and (_mirrored(key) if is_mirrored else key) not in index
        }
        if missing:
            about = _about(model, image_processor, autocast_dtype)
            write_text(folder / "about.json", json.dumps(about, indent=1, default=str))
            encode = _Encoder(model, image_processor, autocast_dtype)
            reasons |= _compute(splits, missing, encode, folder, batch_size, num_threads, skip_bad_images)
            index = _index([MappedShard(path) for path in shard_paths(folder)])

    result, left_out = {}, []
    for split, rows in splits.items():
        kept: list[int] = []
        ids: dict[str, int] = {}
        mirrored_ids: dict[str, int] = {}
        for row, (key, image_id) in enumerate(zip(keys[split], rows["image_id"], strict=True)):
            if key in index:
                kept.append(row)
                if ids.setdefault(image_id, index[key]) != index[key]:
                    raise ValueError(f"split {split!r}: two different images have the id {image_id!r}; rename one.")
                if split in mirrored:
                    mirrored_ids[image_id] = index[_mirrored(key)]
            else:
                path = rows[row]["image"]["path"] or ""
                left_out.append(SkippedExample(split, image_id, path, reasons[key or path], is_bad_file=True))
        if not kept:
            raise ValueError(f"split {split!r} has no image that can be decoded; check the paths of its images.")
        chosen = rows if len(kept) == len(rows) else rows.select(kept)
        result[split] = CachedSplit(
            chosen,
            ImageFeatures(shard_paths(folder), ids, fingerprint),
            ImageFeatures(shard_paths(folder), mirrored_ids, fingerprint) if split in mirrored else None,
        )
    log_skipped(left_out, "feature cache")
    if skipped is not None:
        skipped += left_out
    return result


def _missing_files(
    splits: Mapping[str, datasets.Dataset], keys: dict[str, list[str | None]], skip_bad_images: bool
) -> dict[str, str]:
    """Path of an image file that cannot be read → what is wrong with it; raised unless it is to be skipped."""
    reasons = {}
    for split, rows in splits.items():
        for row in (row for row, key in enumerate(keys[split]) if key is None):
            path = rows[row]["image"]["path"]
            if not skip_bad_images:
                raise bad_image_error(FileNotFoundError(f"{path}: image file is missing"))
            reasons[path] = MISSING_IMAGE
    return reasons


def _mirrored(key: str) -> str:
    return f"{key}-mirrored"


def _image_encoder(model: PreTrainedModel) -> ImageEncoder:
    return cast(ImageEncoder, model.base_model.image_encoder)


def _about(model: PreTrainedModel, image_processor: Any, autocast_dtype: torch.dtype | None) -> dict[str, Any]:
    return {
        "vision_config": without_volatile_keys(model.config.vision_config.to_dict()),
        "image_processor": without_volatile_keys(image_processor.to_dict()),
        "autocast_dtype": str(autocast_dtype),
        "format_version": FORMAT_VERSION,
    }


def _index(shards: list[MappedShard]) -> dict[str, int]:
    """Hash of an image → its row, counted through all shards."""
    keys = [key for shard in shards for key in shard.keys]
    return {key: row for row, key in enumerate(keys)}


class _Encoder:
    """Pictures to float16 features."""

    def __init__(self, model: PreTrainedModel, image_processor: Any, autocast_dtype: torch.dtype | None) -> None:
        self.encoder = _image_encoder(model)
        self.image_processor = image_processor
        self.autocast_dtype = autocast_dtype
        self.device = next(self.encoder.parameters()).device

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off and BatchNorm's statistics fixed, and both as they were afterwards."""
        training = self.encoder.training
        self.encoder.eval()
        try:
            yield
        finally:
            self.encoder.train(training)

    def pixel_values(self, pictures: list[Image.Image]) -> torch.Tensor:
        return self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) → (B, P, Dv) in float16 on the CPU."""
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            features = self.encoder(pixel_values.to(self.device))
        features = features.to(torch.float16).cpu()
        if not torch.isfinite(features).all():
            raise ValueError(
                "features of the image encoder exceed the range of float16 (65504), or are not finite; check the "
                "encoder's weights, or train without feature cache."
            )
        return features


def _compute(
    splits: Mapping[str, datasets.Dataset],
    missing: dict[str, _Wanted],
    encode: _Encoder,
    folder: Path,
    batch_size: int,
    num_threads: int,
    skip_bad_images: bool,
) -> dict[str, str]:
    """Write the features of the missing images; gives the reasons of those that cannot be decoded, by key."""
    images = {split: rows.select_columns(["image", "image_id"]) for split, rows in splits.items()}
    bad: dict[str, str] = {}

    def load(keys: list[str]) -> tuple[list[str], torch.Tensor | None]:
        pictures, decoded = [], []
        for key in keys:
            wanted = missing[key]
            example = images[wanted.split][wanted.row]
            try:
                picture = open_image(example["image"], example["image_id"], encode.image_processor)
                pictures.append(mirror(picture) if wanted.mirrored else picture)
                decoded.append(key)
            except (OSError, ValueError) as error:
                if not skip_bad_images:
                    raise bad_image_error(error) from error
                bad[key] = str(error)
        return decoded, encode.pixel_values(pictures) if pictures else None

    with encode.evaluating():
        blank = Image.new("RGB", (64, 64))
        _, regions, width = encode(encode.pixel_values([blank])).shape
        row_bytes = 2 * regions * width
        _announce(folder, len(missing), (regions, width), row_bytes)
        writer = ShardWriter(folder, (regions, width), max(1, SHARD_BYTES // row_bytes))
        batches = [list(missing)[start : start + batch_size] for start in range(0, len(missing), batch_size)]
        with tqdm(total=len(missing), desc="caching image features", unit="image", disable=None) as progress:
            for batch, (keys, pixel_values) in prefetch(batches, load, num_threads, num_threads):
                if pixel_values is not None:
                    encoded = encode(pixel_values)
                    if encoded.shape[1:] != (regions, width):
                        raise ValueError(
                            f"the image encoder gives {tuple(encoded.shape[1:])} regions for one image and "
                            f"{(regions, width)} for another; let the image processor make all images the same size, "
                            "or train without feature cache."
                        )
                    for key, features in zip(keys, encoded.numpy(), strict=True):
                        writer.add(key, features)
                progress.update(len(batch))
        writer.flush()
    return bad


def _announce(folder: Path, images: int, shape: tuple[int, int], row_bytes: int) -> None:
    """Say what is about to be written, and refuse where it would not fit."""
    needed, free = images * row_bytes, shutil.disk_usage(folder).free
    regions, width = shape
    logger.info(
        "caching features of %d images in %s: %d x %d x %d x 2 bytes = %s, of %s free",
        *(images, folder, images, regions, width, _size(needed), _size(free)),
    )
    if needed + SPARE_BYTES > free:
        raise OSError(
            f"{folder}: the features of {images} images take {_size(needed)}, but {_size(free)} are free there (of "
            f"which {_size(SPARE_BYTES)} stay free); choose another folder for the feature cache, or train without it."
        )


def _size(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"

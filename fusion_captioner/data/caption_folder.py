"""A `datasets` builder for folders of annotated images: reads and checks them once, keeps the result as Arrow files."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from fusion_captioner.data import coco_layout, imagefolder_layout, karpathy_layout
from fusion_captioner.data.annotated_images import (
    AnnotatedImage,
    BadExamples,
    SkippedExample,
    log_skipped,
    read_skipped,
    write_skipped,
)
from fusion_captioner.data.image_files import MISSING_IMAGE, image_problem, image_problems
from fusion_captioner.data.split_names import choose_splits

FEATURES = datasets.Features(
    {
        "image": datasets.Image(decode=False),
        "captions": datasets.List(datasets.Value("string")),
        "image_id": datasets.Value("string"),
    }
)
# Part of the cache's key: raise it when the readers give something else for the same files.
READER_VERSION = 1
# In streaming, the parts that data-loader workers share out among themselves and that shuffling permutes.
STREAMING_PARTS = 64

ReadSplits = Callable[["CaptionFolderConfig", BadExamples], dict[str, list[AnnotatedImage]]]


@dataclass
class CaptionFolderConfig(datasets.BuilderConfig):
    """What determines the Arrow files, and so their place in the cache.

    Attributes:
        root: absolute path of the folder.
        annotation_files: (path, size in bytes, modification time in ns) of every file that is read.
        images_folder: absolute path of the images where they are not in their usual place.
        splits: split wanted → splits of the source, joined by `+`.
        caption_column: see [`~fusion_captioner.data.imagefolder_layout.read_imagefolder`].
        id_column: likewise.
        skip_bad_images: leave bad examples out instead of raising.
        reader_version: `READER_VERSION`.
    """

    root: str = ""
    annotation_files: tuple[tuple[str, int, int], ...] = ()
    images_folder: str | None = None
    splits: tuple[tuple[str, str], ...] | None = None
    caption_column: str | None = None
    id_column: str | None = None
    skip_bad_images: bool = False
    reader_version: int = READER_VERSION


def _read_coco(config: CaptionFolderConfig, bad: BadExamples) -> dict[str, list[AnnotatedImage]]:
    root = Path(config.root)
    chosen = choose_splits(list(coco_layout.annotation_files(root)), _wanted(config))
    return {
        split: coco_layout.read_coco(root, sources, _images(config), split, bad) for split, sources in chosen.items()
    }


def _read_karpathy(config: CaptionFolderConfig, bad: BadExamples) -> dict[str, list[AnnotatedImage]]:
    path = Path(config.annotation_files[0][0])
    entries = karpathy_layout.read_entries(path)
    names = list(dict.fromkeys(str(entry["split"]) for entry in entries))
    chosen = choose_splits(names, _wanted(config), joins_train="restval")
    return {
        split: karpathy_layout.read_karpathy(entries, path, sources, _images(config), split, bad)
        for split, sources in chosen.items()
    }


def _read_imagefolder(config: CaptionFolderConfig, bad: BadExamples) -> dict[str, list[AnnotatedImage]]:
    root = Path(config.root)
    chosen = choose_splits(list(imagefolder_layout.annotation_files(root)), _wanted(config))
    return {
        split: imagefolder_layout.read_imagefolder(root, sources, split, bad, config.caption_column, config.id_column)
        for split, sources in chosen.items()
    }


def _wanted(config: CaptionFolderConfig) -> dict[str, str] | None:
    return None if config.splits is None else dict(config.splits)


def _images(config: CaptionFolderConfig) -> Path | None:
    return None if config.images_folder is None else Path(config.images_folder)


READERS: dict[str, ReadSplits] = {"coco": _read_coco, "karpathy": _read_karpathy, "imagefolder": _read_imagefolder}


class CaptionFolder(datasets.GeneratorBasedBuilder):
    """Builder with columns `image` (undecoded), `captions` and `image_id`; its config's name is the layout.

    Everything is read and checked before anything is written. For streaming, only the annotations are read at first,
    and an image's header is looked at when its turn comes.
    """

    BUILDER_CONFIG_CLASS = CaptionFolderConfig
    config: CaptionFolderConfig

    @property
    def skipped_file(self) -> Path:
        """Where the list of examples that were left out is kept, beside the folder of Arrow files."""
        return Path(self.cache_dir + ".skipped.json")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES)

    def _split_generators(
        self, dl_manager: datasets.DownloadManager | datasets.StreamingDownloadManager
    ) -> list[datasets.SplitGenerator]:
        bad = BadExamples(self.config.skip_bad_images)
        splits = READERS[self.config.name](self.config, bad)
        if dl_manager.is_streaming:
            bad.log_summary(self.config.root)
            parts = {split: _parts(images) for split, images in splits.items()}
        else:
            checked = {split: _drop_bad_files(images, split, bad) for split, images in splits.items()}
            write_skipped(bad.skipped, self.skipped_file)
            parts = {split: [images] for split, images in checked.items()}
        for split, images in parts.items():
            if not any(images):
                raise ValueError(f"{self.config.root}: split {split!r} has no image with a caption.")
        return [
            datasets.SplitGenerator(
                name=split, gen_kwargs={"parts": parts[split], "split": split, "check": dl_manager.is_streaming}
            )
            for split in parts
        ]

    def _generate_examples(
        self, parts: list[list[AnnotatedImage]], split: str, check: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        bad = BadExamples(self.config.skip_bad_images)
        for part in parts:
            for image in part:
                if check and (problem := image_problem(image.path)):
                    _report(image, split, problem, bad)
                    continue
                row = {"image": {"path": image.path, "bytes": None}, "captions": image.captions}
                yield image.image_id, row | {"image_id": image.image_id}
        bad.log_summary(self.config.root)


def load_caption_folder(
    layout: str,
    root: Path,
    annotation_files: Sequence[Path],
    *,
    images_folder: Path | None = None,
    splits: Mapping[str, str] | None = None,
    caption_column: str | None = None,
    id_column: str | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
    skip_bad_images: bool = False,
) -> tuple[datasets.DatasetDict | datasets.IterableDatasetDict, list[SkippedExample]]:
    """Load a folder in a layout of `READERS`; from the Arrow files alone if its annotation files are unchanged.

    Returns:
        The splits, and what was left out of them (with `streaming`, that is logged only).

    Raises:
        FileNotFoundError, ValueError: see the readers; each message is one line with the file and the fix.
    """
    state = [path.stat() for path in annotation_files]
    builder = CaptionFolder(
        cache_dir=cache_dir,
        config_name=layout,
        root=str(root),
        annotation_files=tuple(
            (str(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(annotation_files, state, strict=True)
        ),
        images_folder=None if images_folder is None else str(images_folder),
        splits=None if splits is None else tuple(splits.items()),
        caption_column=caption_column,
        id_column=id_column,
        skip_bad_images=skip_bad_images,
        reader_version=READER_VERSION,
    )
    if streaming:
        return builder.as_streaming_dataset(), []
    mode = datasets.DownloadMode.REUSE_DATASET_IF_EXISTS
    # Images that were left out may have been mended since: then, and only then, the check is made again.
    if os.path.isdir(builder.cache_dir) and _is_outdated(builder.skipped_file):
        mode = datasets.DownloadMode.FORCE_REDOWNLOAD
    # `datasets` would otherwise compare the number of rows with that of the outdated files.
    builder.download_and_prepare(download_mode=mode, verification_mode=datasets.VerificationMode.NO_CHECKS)
    skipped = read_skipped(builder.skipped_file)
    log_skipped(skipped, str(root), str(builder.skipped_file))
    return builder.as_dataset(), skipped


def _is_outdated(skipped_file: Path) -> bool:
    if not skipped_file.is_file():
        return True
    bad_files = {example.file for example in read_skipped(skipped_file) if example.is_bad_file}
    return any(image_problem(file) is None for file in bad_files)


def _drop_bad_files(images: list[AnnotatedImage], split: str, bad: BadExamples) -> list[AnnotatedImage]:
    problems = image_problems([image.path for image in images], split)
    for image, problem in zip(images, problems, strict=True):
        if problem:
            _report(image, split, problem, bad)
    return [image for image, problem in zip(images, problems, strict=True) if not problem]


def _report(image: AnnotatedImage, split: str, problem: str, bad: BadExamples) -> None:
    error = FileNotFoundError if problem == MISSING_IMAGE else ValueError
    bad.report(SkippedExample(split, image.image_id, image.path, problem, is_bad_file=True), error)


def _parts(images: list[AnnotatedImage]) -> list[list[AnnotatedImage]]:
    size = max(1, -(-len(images) // STREAMING_PARTS))
    return [images[start : start + size] for start in range(0, len(images), size)]

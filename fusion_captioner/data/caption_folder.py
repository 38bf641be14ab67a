"""A `datasets` builder for folders of annotated images: reads and checks them once, keeps the result as Arrow
files."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from filelock import FileLock

from fusion_captioner.data.annotated_images import (
    AnnotatedImage,
    BadExamples,
    SkippedExample,
    log_skipped,
    read_skipped,
    write_skipped,
)
from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.data.image_files import MISSING_IMAGE, image_problem, image_problems
from fusion_captioner.data.layouts import LAYOUTS
from fusion_captioner.fingerprints import digest_problem, write_digests

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "image": datasets.Image(decode=False),
        "captions": datasets.List(datasets.Value("string")),
        "image_id": datasets.Value("string"),
    }
)
# Part of the cache's key: raise it when the readers give something else for the same files.
READER_VERSION = 3
# In streaming, the parts that data-loader workers share out among themselves and that shuffling permutes.
STREAMING_PARTS = 64


@dataclass
class CaptionFolderConfig(datasets.BuilderConfig):
    """What determines the Arrow files, and so their place in the cache; its `name` is the layout.

    Attributes:
        source: the folder and how it is read, without what changes no row.
        annotation_files: (path, size in bytes, modification time in ns) of every file that is read.
        reader_version: `READER_VERSION`.
    """

    source: CaptionSource = field(default_factory=lambda: CaptionSource(""))
    annotation_files: tuple[tuple[str, int, int], ...] = ()
    reader_version: int = READER_VERSION


class CaptionFolder(datasets.GeneratorBasedBuilder):
    """Builder with columns `image` (undecoded), `captions` and `image_id`; its config's name is the layout.

    Everything is read and checked before anything is written. For streaming, only the annotations are read at first,
    and an image's header is looked at when its turn comes.
    """

    BUILDER_CONFIG_CLASS = CaptionFolderConfig
    config: CaptionFolderConfig

    @property
    def skipped_file(self) -> Path:
        """Where the list of examples that were left out is kept, next to the folder of Arrow files."""
        return Path(self.cache_dir + ".skipped.json")

    def _build_cache_dir(self) -> str:
        """The folder of Arrow files, without files that were damaged since: then all are made again."""
        folder = super()._build_cache_dir()
        if os.path.isdir(folder):
            with FileLock(f"{folder}.check.lock"):
                if os.path.isdir(folder) and (problem := digest_problem(Path(folder))):
                    logger.warning("%s: %s; the annotations are read again", folder, problem)
                    shutil.rmtree(folder)
        return folder

    def _save_info(self) -> None:
        super()._save_info()
        write_digests(Path(self._output_dir))  # the last step before the folder gets its name

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES)

    def _split_generators(
        self, dl_manager: datasets.DownloadManager | datasets.StreamingDownloadManager
    ) -> list[datasets.SplitGenerator]:
        bad = BadExamples(self.config.source.skip_bad_images)
        splits = LAYOUTS[self.config.name].read(self.config.source, bad)
        if dl_manager.is_streaming:
            bad.log_summary(self.config.source.source)
            parts = {split: _parts(images) for split, images in splits.items()}
        else:
            checked = {split: _drop_bad_files(images, split, bad) for split, images in splits.items()}
            write_skipped(bad.skipped, self.skipped_file)
            parts = {split: [images] for split, images in checked.items()}
        for split, images in parts.items():
            if not any(images):
                raise ValueError(f"{self.config.source.source}: split {split!r} has no image with a caption.")
        return [
            datasets.SplitGenerator(
                name=split, gen_kwargs={"parts": parts[split], "split": split, "check": dl_manager.is_streaming}
            )
            for split in parts
        ]

    def _generate_examples(
        self, parts: list[list[AnnotatedImage]], split: str, check: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        bad = BadExamples(self.config.source.skip_bad_images)
        for part in parts:
            for image in part:
                if check and (problem := image_problem(image.path)):
                    _report(image, split, problem, bad)
                    continue
                row = {"image": {"path": image.path, "bytes": None}, "captions": image.captions}
                yield image.image_id, row | {"image_id": image.image_id}
        bad.log_summary(self.config.source.source)


def load_caption_folder(
    source: CaptionSource, files: Sequence[Path]
) -> tuple[datasets.DatasetDict | datasets.IterableDatasetDict, list[SkippedExample]]:
    """Load a folder in a layout of `LAYOUTS`; from the Arrow files alone if its annotation files are unchanged.

    Args:
        source: with absolute paths, and its layout.
        files: its annotation files.

    Returns:
        The splits, and what was left out of them (with `streaming`, that is logged only).

    Raises:
        FileNotFoundError, ValueError: see `layouts.py`; each message is one line with the file and the fix.
    """
    state = [path.stat() for path in files]
    builder = CaptionFolder(
        cache_dir=source.cache_dir,
        config_name=source.layout,
        source=CaptionSource.of(source, cache_dir=None, streaming=False),
        annotation_files=tuple(
            (str(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(files, state, strict=True)
        ),
        reader_version=READER_VERSION,
    )
    if source.streaming:
        return builder.as_streaming_dataset(), []
    mode = datasets.DownloadMode.REUSE_DATASET_IF_EXISTS
    # An image that was left out may be good by now: then, and only then, all are checked again.
    if os.path.isdir(builder.cache_dir) and _is_outdated(builder.skipped_file):
        mode = datasets.DownloadMode.FORCE_REDOWNLOAD
    # `datasets` would otherwise compare the number of rows with that of the outdated files.
    builder.download_and_prepare(download_mode=mode, verification_mode=datasets.VerificationMode.NO_CHECKS)
    skipped = read_skipped(builder.skipped_file)
    log_skipped(skipped, source.source, str(builder.skipped_file))
    return builder.as_dataset(), skipped


def _is_outdated(skipped_file: Path) -> bool:
    try:
        bad_files = {example.file for example in read_skipped(skipped_file) if example.is_bad_file}
    except (OSError, ValueError, TypeError, RecursionError):  # missing, or damaged
        return True
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

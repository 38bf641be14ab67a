"""The captions of a split, without a look at its images: what scores of ready-made captions need. torch is not
needed."""

import gzip
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from fusion_captioner.data.annotated_images import AnnotatedImage, BadExamples, SkippedExample
from fusion_captioner.data.caption_datasets import (
    annotation_files,
    check_val_fraction,
    is_held_out,
    load_caption_dataset,
    resolve_source,
    source_of_language,
)
from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.data.layouts import LAYOUTS
from fusion_captioner.files import expanded

if TYPE_CHECKING:  # the arguments import transformers, which reading captions does without
    from fusion_captioner.data.arguments import DataArguments


def read_references(source: CaptionSource, skipped: list[SkippedExample]) -> dict[str, list[AnnotatedImage]]:
    """
    Split → its images and their captions. Images of folders need not be there.

    Args:
        source: see [`load_caption_dataset`], which also says what is raised.
        skipped: a list that is extended by the examples that were left out.
    """
    source = resolve_source(source)
    if source.layout not in LAYOUTS:
        loaded = load_caption_dataset(source, skipped=skipped)
        return {split: [_image(row) for row in rows] for split, rows in loaded.items()}
    annotation_files(source)  # refuses a folder that has none
    bad = BadExamples(source.skip_bad_images)
    read = LAYOUTS[source.layout].read
    try:
        splits = read(source, bad)
    except FileNotFoundError:
        if source.layout != "coco" or source.images_folder is not None:
            raise
        # COCO's images are in folders of their own, which need not be there
        splits = read(replace(source, images_folder=str(source.path)), bad)
    skipped += bad.skipped
    if source.val_fraction is not None:
        check_val_fraction(splits, source)
        rows = splits.pop("train")
        for split, held_out in (("train", False), ("val", True)):
            splits[split] = [row for row in rows if is_held_out(row.image_id, source) == held_out]
    return {split: images for split, images in splits.items() if images}


def _image(row: dict[str, Any]) -> AnnotatedImage:
    return AnnotatedImage(row["image_id"], row["image"]["path"] or "", row["captions"])


def read_corpus(source: str) -> dict[str, list[str]]:
    """
    Captions by image of a corpus, whose images need not be there.

    Args:
        source: a `.gz` file of lines `image id<TAB>caption`; or a folder or file of any layout, of which the split
            `train` is taken.

    Raises:
        ValueError: a line without id or caption, no caption, no split `train`; and what [`read_references`] raises.
    """
    path = expanded(source)
    if path.is_file() and path.suffix == ".gz":
        return _text_captions(path)
    splits = read_references(CaptionSource(source), [])
    if "train" not in splits:
        raise ValueError(f"{source}: has no split 'train', whose captions are read; there are {', '.join(splits)}.")
    return {image.image_id: image.captions for image in splits["train"]}


def load_texts(data: "DataArguments") -> datasets.Dataset:
    """The training captions without images, for `data.hide_images`: columns `captions`, `image_id` and, with several
    languages, `languages`."""
    sources = {language: source_of_language(data, where).source for language, where in data.languages.items()}
    rows = []
    for language, source in (sources or {"": data.source}).items():
        for image_id, captions in list(read_corpus(source).items())[: data.max_train_images]:
            row: dict[str, Any] = {"captions": captions, "image_id": image_id}
            if language:
                row |= {"image_id": f"{language}/{image_id}", "languages": [language] * len(captions)}
            rows.append(row)
    return datasets.Dataset.from_list(rows)


def _text_captions(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                image_id, _, text = line.partition("\t")
                if not image_id.strip() or not text.strip():
                    raise ValueError(f"{path}: line {number} ({line[:60].strip()!r}) is no `image id<TAB>caption`.")
                captions.setdefault(image_id.strip(), []).append(" ".join(text.split()))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path}: is no UTF-8 text packed by gzip ({error}); pack it again.") from error
    if not captions:
        raise ValueError(f"{path}: holds no caption; give lines of `image id<TAB>caption`.")
    return captions

"""The captions of a split, without a look at its images: what scores of ready-made captions need. torch is not
needed."""

from dataclasses import replace
from typing import Any

from fusion_captioner.data.annotated_images import AnnotatedImage, BadExamples, SkippedExample
from fusion_captioner.data.caption_datasets import (
    annotation_files,
    check_val_fraction,
    is_held_out,
    load_caption_dataset,
    resolve_source,
)
from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.data.layouts import LAYOUTS


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

"""Karpathy's layout: one `dataset_{coco,flickr8k,flickr30k}.json` that names the split of every image.

    dataset_flickr8k.json    {"images": [{"filename", "split", "imgid", "sentences": [{"raw"}]}]}
    images/*.jpg             or, for COCO, train2014/*.jpg and val2014/*.jpg, named by "filepath"

Source: Karpathy & Fei-Fei (2015), Deep Visual-Semantic Alignments for Generating Image Descriptions. Its `restval` are
the images of COCO's val2014 that are in neither `val` nor `test`; everyone since trains on them too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_captioner.data.annotated_images import (
    AnnotatedImage,
    BadExamples,
    SkippedExample,
    clean_captions,
    merge_repeated,
    read_json,
    required_list,
)
from fusion_captioner.data.image_files import ImageFolder


def annotation_files(root: Path) -> list[Path]:
    """
    The `dataset_*.json` in the folder; there should be one. Captions of the same images in further languages,
    `dataset_flickr8k_zh.json` next to `dataset_flickr8k.json`, are read only where their path is given.
    """
    files = sorted(root.glob("dataset_*.json"), key=lambda file: (len(file.stem), file.stem))
    return [file for file in files if not any(file.stem.startswith(f"{first.stem}_") for first in files)]


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of the file, each with `filename`, `split` and `sentences` present.

    Raises:
        FileNotFoundError: no such file.
        ValueError: malformed JSON, or an entry without those fields.
    """
    entries = required_list(read_json(path), "images", path)
    for number, entry in enumerate(entries):
        missing = [
            key for key in ("filename", "split", "sentences") if not isinstance(entry, dict) or key not in entry
        ]
        if missing:
            raise ValueError(f'{path}: images[{number}] has no "{missing[0]}"; Karpathy\'s files have it.')
    return entries


def read_karpathy(
    entries: list[dict[str, Any]],
    path: Path,
    source_splits: Sequence[str],
    images_folder: Path | None,
    split: str,
    bad: BadExamples,
) -> list[AnnotatedImage]:
    """The images of the named Karpathy splits, in the order of the file; no image is opened.

    The id of an image is its `cocoid`, else its `imgid`, else its file name.

    Args:
        entries: what [`read_entries`] gave.
        path: the file that they are from.
        source_splits: Karpathy's names (`train`, `restval`, `val`, `test`), joined into one split.
        images_folder: where the images are, if neither in `images/` beside the file nor beside the file itself.
        split: the name that the joined split is to have, for messages.
        bad: told of images without caption, of ids that name two files and of names that leave the image folder.
    """
    root = path.parent
    folder = ImageFolder(images_folder or (root / "images" if (root / "images").is_dir() else root))
    wanted = set(source_splits)
    images = []
    for number, entry in enumerate(entries):
        if entry["split"] not in wanted:
            continue
        image_id = str(entry.get("cocoid", entry.get("imgid", entry["filename"])))
        try:
            # COCO's `filepath` ("val2014") is a sub-folder, unless all images lie in one folder.
            sub_folder = entry.get("filepath", "")
            image_path = folder.resolve(entry["filename"])
            if sub_folder and (folder.path / str(sub_folder)).is_dir():
                image_path = folder.resolve(f"{sub_folder}/{entry['filename']}")
        except ValueError as error:
            bad.report(SkippedExample(split, image_id, str(path), str(error)))
            continue
        sentences = entry["sentences"]
        if not isinstance(sentences, list) or not all(isinstance(item, dict) and "raw" in item for item in sentences):
            raise ValueError(f'{path}: images[{number}]["sentences"] is no list of {{"raw": caption}} objects.')
        if captions := clean_captions((item["raw"] for item in sentences), split, image_id, image_path, bad):
            images.append(AnnotatedImage(image_id, image_path, captions))
    return merge_repeated(images, split, bad)

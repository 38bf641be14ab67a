"""The images of an index: those in a folder, or those of a data set with their captions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from fusion_captioner.data.annotated_images import (
    NO_UTF8_NAME,
    BadExamples,
    SkippedExample,
    escape_surrogates,
    is_utf8,
)
from fusion_captioner.data.caption_datasets import detect_layout, find_layouts, load_caption_dataset
from fusion_captioner.data.caption_folder import FEATURES
from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.data.image_files import find_images, open_image
from fusion_captioner.data.row_layouts import read_sidecars
from fusion_captioner.fingerprints import hash_bytes, hash_file

FOLDER = "folder"


@dataclass
class IndexedImages:
    """
    Args:
        splits: split → rows with the columns `image` (undecoded), `captions` and `image_id`; a folder of images
        without annotations has one split, without name.
        problems: a line for each image that was left out.
    """

    splits: dict[str, datasets.Dataset]
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))


def load_images(source: str, layout: str, split: str | None, columns: Mapping[str, Any]) -> IndexedImages:
    """
    All images of `source`; none of them is decoded.

    Args:
        source: a folder, or what `load_caption_dataset` takes.
        layout: `"folder"`: all images in the folder, next to any other files; others as for `load_caption_dataset`;
            and `"auto"`.
        split: the only one that is wanted, or None for all.
        columns: the fields `images_folder`, `image_column` and `caption_column` of `CaptionSource` that are set.

    Raises:
        ValueError, OSError: there is no image, or no such split; and what loading raises.
    """
    if not source:
        raise ValueError("FOLDER ('') is empty; name a folder of images, or a data set.")
    data = CaptionSource(source, layout, **columns)
    if layout == "auto" and not columns and data.path.is_dir() and not find_layouts(data):
        layout = FOLDER
    if layout == FOLDER:
        if split is not None:
            raise ValueError(f"--split ({split!r}) is for data sets; {source} is a folder of images.")
        if columns:
            flag = f"--{next(iter(columns)).replace('_', '-')}"
            raise ValueError(f"{flag} is for data sets; {source} is read as a folder of images. Leave it out.")
        if not data.path.is_dir():
            raise FileNotFoundError(f"{source}: no such folder; check the path.")
        return _folder_images(source, {})
    in_folder = split is None and not columns and data.path.is_dir()
    if in_folder and (layout if layout != "auto" else detect_layout(data)) == "sidecar":
        # photos without a caption file are found by what they show
        photos = chain(*read_sidecars(data, BadExamples(skip=True)).values())
        return _folder_images(source, {photo.path: photo.captions for photo in photos})
    skipped: list[SkippedExample] = []
    splits = load_caption_dataset(data, skip_bad_images=True, skipped=skipped)
    if split is not None and split not in splits:
        raise ValueError(f"--split ({split!r}) is not in {source}; there are {', '.join(splits)}.")
    wanted = {name: rows for name, rows in splits.items() if split in (None, name)}
    problems = [f"{each.file}: {each.reason}" for each in skipped if each.is_bad_file and each.split in wanted]
    return IndexedImages(wanted, problems)


def _folder_images(source: str, captions: Mapping[str, list[str]]) -> IndexedImages:
    """All images in a folder, with the captions of those that have any."""
    found = [str(Path(path).absolute()) for path in find_images([source])]
    paths = [path for path in found if is_utf8(path)]
    problems = [f"{escape_surrogates(path)}: {NO_UTF8_NAME}" for path in found if not is_utf8(path)]
    rows = {
        "image": [{"path": path, "bytes": None} for path in paths],
        "captions": [captions.get(path, []) for path in paths],
        "image_id": paths,
    }
    return IndexedImages({"": datasets.Dataset.from_dict(rows, features=FEATURES)}, problems)


def index_rows(
    images: IndexedImages, keys: dict[str, list[str | None]]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """
    Rows of images by their names, and of texts by themselves, with the columns of `ROW_FEATURES`.

    Args:
        keys: split → hash of each image, None where it is to be left out.
    """
    of_images: dict[str, dict[str, Any]] = {}
    of_texts: dict[str, dict[str, Any]] = {}
    for split, rows in images.splits.items():
        columns = zip(_paths(rows), rows["image_id"], rows["captions"], keys[split], strict=True)
        for number, (path, image_id, captions, key) in enumerate(columns):
            if key is None:
                continue
            name = path or f"{split}/{image_id}"
            row = of_images.setdefault(
                name,
                {
                    "image": name,
                    "captions": [],
                    "split": None if path else split,
                    "row": None if path else number,
                    "key": key,
                },
            )
            # an image may be in two splits
            row["captions"] += [caption for caption in captions if caption not in row["captions"]]
            for caption in captions:
                text = of_texts.setdefault(
                    caption, {"text": caption, "images": [], "key": hash_bytes(caption.encode())}
                )
                if name not in text["images"]:
                    text["images"].append(name)
    return of_images, of_texts


def _paths(rows: datasets.Dataset) -> Iterator[str | None]:
    """The path of each image that is a file of its own."""
    for image in rows.select_columns(["image"])["image"]:
        yield None if image["bytes"] is not None else image["path"]


def read_indexed_image(row: dict[str, Any], images: IndexedImages | None, image_processor: Any) -> Image.Image:
    """
    The picture of a row of an index.

    Args:
        row: with the columns of `ROW_FEATURES["images"]`.
        images: the data set, for images that are no files.

    Raises:
        OSError, ValueError: it cannot be read any more, or has changed since.
    """
    content: bytes | None = None
    if row["split"] is None:
        path = Path(row["image"])
        try:
            # an index may name pipes and devices, too
            key = hash_file(path) if path.is_file() or not path.exists() else None
        except OSError as error:
            raise OSError(f"{row['image']}: cannot be read ({error.strerror})") from error
    elif images is None:
        raise ValueError(f"{row['image']}: is in a data set, and this index is searched without it")
    else:
        rows, number = images.splits.get(row["split"]), row["row"]
        if rows is not None and number is not None and 0 <= number < len(rows):
            content = rows[number]["image"]["bytes"]
        key = None if content is None else hash_bytes(content)
    if key is None or key != row["key"]:
        raise ValueError(f"{row['image']}: has changed since it was indexed; bring the index up to date")
    return open_image({"path": row["image"], "bytes": content}, row["image"], image_processor)

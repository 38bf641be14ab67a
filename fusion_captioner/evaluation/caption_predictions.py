"""Captions from a file, in COCO's results format, as JSON lines or as a table, and the images of a split that they
belong to."""

import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_captioner.data.annotated_images import AnnotatedImage
from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.data.row_files import IMAGE_NAME, json_rows, read_lines, table_columns, table_form, table_rows
from fusion_captioner.files import expanded

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")

EXAMPLE = '{"image_id": 42, "caption": "a dog"}, or {"image": "a.jpg", "caption": "a dog"} as `caption` writes it'


@dataclass(frozen=True)
class Predictions:
    """
    Args:
        captions: captions by `image_id`, in the order of the split, by the beam size that they were made with (None:
            the file does not say).
        without_caption: images of the split that have none, of any beam size.
        unknown: images of the file that the split does not have, the first few of them.
        number_of_unknown: how many those are.
    """

    captions: dict[int | None, dict[str, str]]
    without_caption: list[str]
    unknown: list[str]
    number_of_unknown: int


def read_predictions(file: str | Path, images: Sequence[AnnotatedImage]) -> Predictions:
    """
    The captions of a file that are of `images`. An image is known by its id, the path of its file, or its name with or
    without the ending.

    Args:
        file: `[{"image_id": 42, "caption": "..."}, ...]`, or what `caption --out` or `evaluate --captions` writes. Of
            several captions the first counts.
        images: those of the split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is malformed, has two captions for one image, or none for any image; the message has the place.
    """
    path = expanded(file)
    if path.is_dir():
        raise ValueError(f"{file}: is a folder; name a file with captions, such as {EXAMPLE}.")
    known = _names(images)
    found: dict[int | None, dict[str, str]] = {}
    places: dict[tuple[int | None, str], str] = {}
    unknown: dict[str, None] = {}
    for where, name, beams, caption in _entries(path):
        if not _may_be_file(name):
            raise ValueError(f"{path}, {where}: {reprlib.repr(name)} is not the name of an image.")
        image_id = next((known[each] for each in _spellings(name) if each in known), None)
        if image_id is None:
            unknown[name] = None
            continue
        first = places.setdefault((beams, image_id), where)
        if first != where:
            raise ValueError(
                f"{path}, {where}: a second caption of the image {name}, after {first}; keep one of them."
            )
        found.setdefault(beams, {})[image_id] = caption
    if not found:
        others = f"its images are {', '.join(list(unknown)[:3])}, ..." if unknown else "it has no captions"
        raise ValueError(
            f"{path}: has no caption of the {len(images)} images of the split, such as {images[0].image_id} "
            f"({os.path.basename(images[0].path)}); {others}"
        )
    order = [image.image_id for image in images]
    captions = {
        beams: {image_id: of_beams[image_id] for image_id in order if image_id in of_beams}
        for beams, of_beams in sorted(found.items(), key=lambda pair: pair[0] or 0)
    }
    missing = [image_id for image_id in order if any(image_id not in of_beams for of_beams in captions.values())]
    return Predictions(captions, missing, list(unknown)[:3], len(unknown))


def _entries(path: Path) -> Iterator[tuple[str, str, int | None, str]]:
    """Place, image, beam size and caption of each entry."""
    if path.suffix.lower() in TABLE_SUFFIXES:
        yield from _table_entries(path)
        return
    kind = "line" if path.suffix.lower() in (".jsonl", ".ndjson") else "entry"
    for number, row in json_rows(path, unique_keys=True):
        where = f"{kind} {number}"
        name = row.get("image_id", row.get("image"))
        caption, beams = row.get("caption"), row.get("beams")
        if isinstance(name, bool) or not isinstance(name, str | int) or not isinstance(caption, str):
            raise ValueError(
                f"{path}, {where}: has the fields {', '.join(map(str, row)) or 'none'}; it needs an image and its "
                f"caption, such as {EXAMPLE}."
            )
        if beams is not None and (isinstance(beams, bool) or not isinstance(beams, int) or beams < 1):
            raise ValueError(f"{path}, {where}: `beams` ({beams!r}) must be a number of at least 1.")
        yield where, str(name), beams, caption


def _table_entries(path: Path) -> Iterator[tuple[str, str, None, str]]:
    def broken(line: int, reason: str) -> None:
        raise ValueError(f"{path}, line {line}: {reason}")

    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; check the path.")
    if path.suffix.lower() == ".txt" and (lines := _tabbed_lines(path)):
        for number, line in enumerate(lines, 1):
            name, *captions = line.split("\t")
            if not line:
                continue
            if not captions and not IMAGE_NAME.fullmatch(name):
                broken(number, f"broken row: {line[:40]!r} has no tab; write the name of an image, a tab, its caption")
            # the tab in front of an empty caption went with the white space around the line
            yield f"line {number}", name, None, captions[0] if captions else ""
        return
    source = CaptionSource(str(path))
    form = table_form(path, source)
    image, (caption, *_) = table_columns(form.columns, source)
    for number, row in table_rows(path, form, broken):
        text = row[caption]
        yield f"line {number}", str(row[image]), None, text[0] if isinstance(text, list) and text else str(text)


def _tabbed_lines(path: Path) -> list[str]:
    """The lines of what `caption --format txt` writes, in which quotes quote nothing; empty: it is another table."""
    lines = read_lines(path)
    name = next((line for line in lines if line), "").partition("\t")[0]
    return lines if IMAGE_NAME.fullmatch(name) and any("\t" in line for line in lines) else []


def _names(images: Sequence[AnnotatedImage]) -> Mapping[str, str]:
    """Image ids by whatever may name an image; a name that two images share names none."""
    known: dict[str, str | None] = {}
    for spell in (_file_stem, os.path.basename, os.path.realpath):
        for image in images:
            name = spell(image.path)
            known[name] = image.image_id if known.get(name, image.image_id) == image.image_id else None
    ids = {image.image_id: image.image_id for image in images}
    return {name: image_id for name, image_id in known.items() if image_id is not None} | ids


def _spellings(name: str) -> Iterator[str]:
    """A name, as it is and as the names of [`_names`] are, the most precise first."""
    yield name
    if os.path.basename(name) != name:
        yield os.path.realpath(os.path.expanduser(name))
    yield os.path.basename(name)
    yield _file_stem(name)


def _may_be_file(name: str) -> bool:
    """Whether the system takes `name` for a path: it has no NUL and no half of a character."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _file_stem(path: Any) -> str:
    return os.path.splitext(os.path.basename(path))[0]

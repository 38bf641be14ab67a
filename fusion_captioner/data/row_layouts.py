"""Layouts in which every row names an image and its captions, and the one in which files next to the images hold them.

See `layouts.py` for what a layout's functions do.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fusion_captioner.data.annotated_images import (
    AnnotatedImage,
    BadExamples,
    SkippedExample,
    clean_captions,
    merge_repeated,
)
from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.data.image_files import HEIF_SUFFIXES, ImageFolder, photo_suffixes
from fusion_captioner.data.names import (
    FILE_COLUMNS,
    captions_at,
    choose_captions,
    choose_column,
    choose_splits,
    id_at,
    split_in_name,
    usual_name,
    value_at,
)
from fusion_captioner.data.row_files import (
    IMAGE_NAME,
    json_columns,
    json_lines,
    json_rows,
    read_lines,
    table_columns,
    table_form,
    table_rows,
)

logger = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv")
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".token")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
SIDECAR_SUFFIXES = (".txt", ".caption")
# Flickr_8k.trainImages.txt, next to Flickr8k.token.txt, lists the images of a split
LIST_OF_IMAGES = re.compile(r".*(train|dev|val|test)Images\.txt")
# Images that are looked for in each folder, to find the one that rows mean
SAMPLED_IMAGES = 20

Splits = dict[str, list[AnnotatedImage]]


class Row(NamedTuple):
    """One row of a file; `where` is its place, for messages."""

    where: str
    fields: dict[str, Any]


class Photos(ImageFolder):
    """An `ImageFolder` that also finds a photo by its name in another case (`a.JPG`), or without its ending."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._alike: dict[str, dict[str, set[str]]] = {}

    def resolve(self, file_name: object) -> str:
        path = super().resolve(file_name)
        if os.path.lexists(path):
            return path
        folder, name = os.path.split(path)
        if folder not in self._alike:
            alike = self._alike[folder] = {}
            for entry in os.listdir(folder) if os.path.isdir(folder) else []:
                for key in {entry.casefold(), os.path.splitext(entry)[0].casefold()}:
                    alike.setdefault(key, set()).add(entry)
        found = self._alike[folder].get(name.casefold(), set())
        # of several none is meant for sure
        return super().resolve(os.path.join(folder, *found)) if len(found) == 1 else path


def read_imagefolder(source: CaptionSource, bad: BadExamples) -> Splits:
    """An imagefolder of `datasets`: metadata next to the images, one line per image or one line per caption.

        train/metadata.jsonl     {"file_name": "a.jpg", "text": "A dog."}     or "caption", or "captions": ["...", ...]
        train/a.jpg ...          or train/metadata.csv, with the columns file_name,text
        validation/...

    Metadata in the folder itself makes one split, `train`. Lines of the same image are joined. The id of an image is
    `id_column`, else its path inside the folder.
    """
    root = source.path
    files = imagefolder_splits(root)
    of_files = replace(source, image_column="file_name")
    splits = {}
    for split, names in choose_splits(list(files), source.splits).items():
        images: list[AnnotatedImage] = []
        for path in map(files.__getitem__, names):
            is_table = path.suffix == ".csv"
            rows = _table(path, of_files, split, bad) if is_table else _numbered(path, "line", json_lines(path))
            prefix = path.parent.relative_to(root).as_posix()
            images += _images_of_rows(rows, ImageFolder(path.parent), of_files, split, bad, prefix)
        splits[split] = merge_repeated(images, split, bad)
    return splits


def imagefolder_splits(root: Path, names: Iterable[str] = METADATA) -> dict[str, Path]:
    """The metadata file of every split, by the name of its sub-folder."""
    files: dict[str, Path] = {}
    for name in names:
        if (root / name).is_file():
            return {"train": root / name}
        for path in root.glob(f"*/{name}"):
            files.setdefault(path.parent.name, path)
    return dict(sorted(files.items()))


def read_table(source: CaptionSource, bad: BadExamples) -> Splits:
    """A table of text with the name of an image and its caption, or captions, in every row; see `table_form`.

        captions.txt, *.csv, *.tsv     image,caption            or caption_0,caption_1,... in place of caption
        Flickr8k.token.txt             a.jpg#0<TAB>A dog.       with Flickr_8k.trainImages.txt, ..., if they are there
        Images/a.jpg ...               or next to the table, or in another sub-folder

    Rows of one image are joined. A column `split` names the split of each row; without it several tables are known by
    their names (`train.csv`, `val.csv`), and one table is `train`. The id of an image is `id_column`, else its path
    inside the folder of the images.
    """

    def rows_of(path: Path, split: str) -> Iterator[Row]:
        return _table(path, source, split, bad)

    return _read_row_files(_of(source, table_files), rows_of, source, bad)


def table_files(source: CaptionSource) -> list[Path]:
    """The tables in the folder, or else in its sub-folders, that name images and captions."""
    return _row_files(source, TABLE_SUFFIXES, lambda path: table_form(path, source))


def read_json_list(source: CaptionSource, bad: BadExamples) -> Splits:
    """A JSON list, or JSON lines, with the name of an image and its caption, or captions, in every object.

        captions.json      [{"image": "a.jpg", "caption": "A dog."}, ...]       or "captions": ["...", "..."]
        captions.jsonl     {"image": "a.jpg", "caption": "A dog."}
        images/a.jpg ...   or next to the file, or in another sub-folder

    Splits, ids and repeated images are as in tables.
    """

    def rows_of(path: Path, split: str) -> Iterator[Row]:
        return _numbered(path, "entry", json_rows(path))

    return _read_row_files(_of(source, json_files), rows_of, source, bad)


def json_files(source: CaptionSource) -> list[Path]:
    """The JSON lists and JSON lines in the folder, or else in its sub-folders, that name images and captions."""
    return _row_files(source, JSON_SUFFIXES, lambda path: table_columns(json_columns(path), source))


def unfit_files(source: CaptionSource) -> list[str]:
    """Why files in the folder, which look as if they held rows, are read in no layout; a file by itself, too."""
    problems = []
    for path in [source.path] if source.path.is_file() else sorted(source.path.iterdir()):
        suffix = path.suffix.lower()
        try:
            if suffix in JSON_SUFFIXES:
                table_columns(json_columns(path), source)
            elif suffix in TABLE_SUFFIXES and (suffix != ".txt" or path == source.path):
                table_form(path, source)
        except (ValueError, OSError) as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return problems


def _row_files(source: CaptionSource, suffixes: tuple[str, ...], check: Callable[[Path], Any]) -> list[Path]:
    """Files of these suffixes that pass `check`, which raises otherwise."""

    def fits(path: Path) -> bool:
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or path.name in METADATA:
            return False
        # Flickr8k has its captions once more as lemmas
        if ".lemma." in path.name or not path.is_file():
            return False
        try:
            check(path)
        except (ValueError, OSError):
            return False
        return True

    def files_in(folder: Path) -> list[Path]:
        photos = _photo_stems(folder)
        return [
            path
            for path in sorted(folder.iterdir())
            if not (path.suffix == ".txt" and path.stem in photos) and fits(path)
        ]

    if source.path.is_file():
        return [source.path] if fits(source.path) else []
    folders = sorted(path for path in source.path.iterdir() if path.is_dir() and not path.name.startswith("."))
    return files_in(source.path) or [path for folder in folders for path in files_in(folder)]


def _of(source: CaptionSource, files: Callable[[CaptionSource], list[Path]]) -> list[Path]:
    """The files of a layout that is given: a file by itself is read as that, or the fault in it is reported."""
    return [source.path] if source.path.is_file() else files(source)


def _read_row_files(
    files: list[Path], rows_of: Callable[[Path, str], Iterator[Row]], source: CaptionSource, bad: BadExamples
) -> Splits:
    root = source.path if source.path.is_dir() else source.path.parent
    by_split: dict[str, list[Row]] = {}
    split_of_file = {path: (len(files) > 1 and split_in_name(path.name)) or "train" for path in files}
    if len(set(split_of_file.values())) < len(files):
        names = ", ".join(path.name for path in files)
        raise ValueError(
            f"{source.source}: more than one file of captions ({names}); give the path of one of them, or names that "
            "tell their splits, such as train.csv and val.csv."
        )
    for path, split in split_of_file.items():
        lists = _lists_of_images(path)
        for row in rows_of(path, usual_name(split)):
            place = str(row.fields.get("split") or split)
            if lists:
                name = _file_name(row, source)
                place = next((each for each, names in lists.items() if name in names), "")
            by_split.setdefault(place, []).append(row)
    if unlisted := by_split.pop("", []):
        logger.info("%s: %d captions are left out, of images that are in no split", source.source, len(unlisted))
    if not by_split:
        raise ValueError(f"{', '.join(map(str, files))}: there are no rows; write a row for each image.")
    images_path = source.images_path or _folder_of_images(root, chain(*by_split.values()), source)
    folder = Photos(images_path)
    splits: Splits = {}
    split_of: dict[str, str] = {}
    for split, parts in choose_splits(list(by_split), source.splits, joins_train="restval").items():
        rows = chain(*(by_split[part] for part in parts))
        images = []
        for image in _images_of_rows(rows, folder, source, split, bad):
            # splits that were chosen may share a part
            if (first := split_of.setdefault(image.path, split)) == split or source.splits is not None:
                images.append(image)
            else:
                reason = f"the image is listed twice, in the splits {first!r} and {split!r}"
                bad.report(SkippedExample(split, image.image_id, image.path, reason))
        splits[split] = merge_repeated(images, split, bad)
    return splits


def _table(path: Path, source: CaptionSource, split: str, bad: BadExamples) -> Iterator[Row]:
    def broken(line: int, reason: str) -> None:
        bad.report(SkippedExample(split, "?", f"{path}, line {line}", reason))

    return _numbered(path, "line", table_rows(path, table_form(path, source), broken))


def _numbered(path: Path, unit: str, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Row]:
    return (Row(f"{path}, {unit} {number}", fields) for number, fields in rows)


def _images_of_rows(
    rows: Iterable[Row], folder: ImageFolder, source: CaptionSource, split: str, bad: BadExamples, prefix: str = ""
) -> Iterator[AnnotatedImage]:
    """The images of rows, in their order; `prefix` begins the ids that are paths inside `folder`."""
    root = os.path.realpath(folder.path)
    for row in rows:
        name = _file_name(row, source)
        try:
            captions = captions_at(row.fields, choose_captions(source.caption_column, list(row.fields)))
            image_id = id_at(row.fields, source.id_column)
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from None
        try:
            path = folder.resolve(name)
        except ValueError as error:
            bad.report(SkippedExample(split, str(name), row.where, str(error)))
            continue
        image_id = image_id or str(PurePosixPath(prefix, Path(os.path.relpath(path, root)).as_posix()))
        if captions := clean_captions(captions, split, image_id, path, bad):
            yield AnnotatedImage(image_id, path, captions)


def _file_name(row: Row, source: CaptionSource) -> Any:
    """The name of the image file of a row, without the number of the caption behind it (`a.jpg#0`)."""
    try:
        column = choose_column(source.image_column, FILE_COLUMNS, list(row.fields), "image_column")
        name = value_at(row.fields, column)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from None
    numbered = IMAGE_NAME.fullmatch(name) if isinstance(name, str) else None
    return numbered["name"] if numbered else name


def _lists_of_images(path: Path) -> dict[str, set[str]]:
    """Split → names of its images, of the lists next to a file."""
    found = {}
    for file in sorted(path.parent.glob("*Images.txt")):
        if match := LIST_OF_IMAGES.fullmatch(file.name):
            found[match[1]] = set(read_lines(file))
    return found


def _folder_of_images(root: Path, rows: Iterable[Row], source: CaptionSource) -> Path:
    """The folder that holds the images of the first rows: `root`, or one up to two levels below it."""
    names: dict[Any, None] = {}
    for row in rows:
        name = _file_name(row, source)
        if isinstance(name, str):
            names[name] = None
        if len(names) == SAMPLED_IMAGES:
            break
    folders = [root, *(path for pattern in ("*", "*/*") for path in sorted(root.glob(pattern)) if path.is_dir())]
    best, most = root, 0
    for path in folders:
        folder = Photos(path)
        if (found := sum(_holds(folder, name) for name in names)) > most:
            best, most = path, found
        if most == len(names):
            break
    if not most:
        raise FileNotFoundError(
            f"{source.source}: no folder with the images that it names, such as {next(iter(names), None)!r} (looked "
            f"in {root} and two levels below); put them there, or name their folder with `images_folder`."
        )
    return best


def _holds(folder: ImageFolder, name: str) -> bool:
    try:
        return os.path.isfile(folder.resolve(name))
    except ValueError:
        return False


def read_sidecars(source: CaptionSource, bad: BadExamples) -> Splits:
    """A caption file next to each photo, which has its name, one caption per line.

        a.jpg
        a.txt         or a.caption, or a.jpg.txt
        more/b.png
        more/b.txt

    Where all photos lie in sub-folders with names of splits (`train/`, `val/`), these are the splits; else all is
    `train`. The id of an image is its path inside the folder.
    """
    root = source.path
    by_split: dict[str, list[Path]] = {}
    sidecars = photo_sidecars(root)
    usual = {photo: photo.relative_to(root).parts[0] for photo in sidecars}
    has_splits = all(usual_name(name) in ("train", "val", "test") for name in usual.values())
    for photo, name in usual.items():
        by_split.setdefault(name if has_splits else "train", []).append(photo)
    shared: dict[Path, Path] = {}
    splits: Splits = {}
    for split, parts in choose_splits(list(by_split), source.splits).items():
        images = []
        for photo in chain(*(by_split[part] for part in parts)):
            image_id = photo.relative_to(root).as_posix()
            reason = None
            if len(sidecars[photo]) != 1:
                found = " and ".join(path.name for path in sidecars[photo])
                reason = (
                    f"has two caption files, {found}" if found else f"has no caption file {photo.stem}.txt next to it"
                )
            elif (other := shared.setdefault(sidecars[photo][0], photo)) != photo:
                reason = (
                    f"shares its caption file {sidecars[photo][0].name} with {other.name}; rename one of the photos"
                )
            if reason is not None:
                bad.report(SkippedExample(split, image_id, str(photo), reason))
                continue
            captions = [line for line in read_lines(sidecars[photo][0]) if line.strip()]
            if captions := clean_captions(captions, split, image_id, str(photo), bad):
                images.append(AnnotatedImage(image_id, str(photo), captions))
        splits[split] = images
    return splits


def sidecar_files(source: CaptionSource) -> list[Path]:
    """The caption files in the folder that have a photo next to them."""
    if source.path.is_file():
        return []
    return sorted({path for paths in photo_sidecars(source.path).values() for path in paths})


def photo_sidecars(root: Path) -> dict[Path, list[Path]]:
    """Photo → its caption files, for all photos below a folder; names that begin with a dot are left out."""
    suffixes = photo_suffixes() | HEIF_SUFFIXES
    photos, texts = [], {}
    for path in sorted(root.rglob("*")):
        suffix = path.suffix.lower()
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        if suffix in SIDECAR_SUFFIXES:
            texts[path.parent, path.name.lower()] = path
        elif suffix in suffixes and path.is_file():
            photos.append(path)
    found = {}
    for photo in photos:
        names = [f"{name}{suffix}".lower() for name in (photo.stem, photo.name) for suffix in SIDECAR_SUFFIXES]
        found[photo] = [texts[photo.parent, name] for name in names if (photo.parent, name) in texts]
    return found


def _photo_stems(folder: Path) -> set[str]:
    """Names of the photos in a folder without their suffixes: what a text file of one says is about that photo."""
    suffixes = photo_suffixes() | HEIF_SUFFIXES
    return {path.stem for path in folder.iterdir() if path.suffix.lower() in suffixes}

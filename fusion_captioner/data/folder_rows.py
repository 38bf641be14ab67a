"""Rows of an imagefolder whose lines are more than captions: an image, and fields of which a task makes its inputs."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from fusion_captioner.data.annotated_images import BadExamples, SkippedExample, is_utf8
from fusion_captioner.data.image_files import MISSING_IMAGE, ImageFolder, image_problems
from fusion_captioner.data.names import choose_splits
from fusion_captioner.data.row_files import json_lines
from fusion_captioner.data.row_layouts import imagefolder_splits
from fusion_captioner.files import expanded

METADATA = "metadata.jsonl"
HIDDEN = "..."


class FolderRow(NamedTuple):
    """One line of `metadata.jsonl`.

    Args:
        where: file and line, for messages.
        image_id: path of the image inside the folder; several rows may share it.
        path: absolute path of the image.
        fields: what the line holds.
    """

    where: str
    image_id: str
    path: str
    fields: dict[str, Any]

    def text(self, column: str) -> str:
        """The text in a field, white space made single blanks; a number as it is written.

        Raises:
            ValueError: the field is not there, or holds no text.
        """
        value = self.value(column)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return str(value)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: {column!r} is {value!r}, no text; correct it, or name another column.")
        return " ".join(value.split())

    def value(self, column: str) -> Any:
        """The value of a field.

        Raises:
            ValueError: the field is not there.
        """
        if column not in self.fields:
            raise ValueError(
                f"{self.where}: there is no field {column!r}, only {', '.join(self.fields)}; name one of these."
            )
        return self.fields[column]


def read_folder_rows(
    source: str | Path, wanted: Sequence[str], splits: Mapping[str, str] | None = None, skip_bad_images: bool = False
) -> dict[str, list[FolderRow]]:
    """The rows of each split, in the order of their lines; the header of every image is checked.

    Args:
        source: a folder with `<split>/metadata.jsonl` next to the images.
        wanted: names of the splits to read.
        splits: see [`~fusion_captioner.data.names.choose_splits`].
        skip_bad_images: leave rows out whose image cannot be read, with a warning, instead of raising.

    Raises:
        FileNotFoundError: the folder, its metadata or an image is missing.
        ValueError: a split that is not there, malformed lines, an unreadable image.
    """
    root = expanded(source).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{source}: no such folder; give one with <split>/{METADATA} next to its images.")
    files = imagefolder_splits(root, [METADATA])
    if not files:
        raise FileNotFoundError(f"{source}: holds no {METADATA}, neither itself nor in a sub-folder.")
    chosen = choose_splits(list(files), splits)
    bad = BadExamples(skip_bad_images)
    result = {}
    for split in wanted:
        if split not in chosen:
            raise ValueError(f"{source}: there is no split {split!r}; there are {', '.join(chosen)}.")
        rows = [row for name in chosen[split] for row in _rows_of(root, files[name], split, bad)]
        paths = list(dict.fromkeys(row.path for row in rows))
        problems = dict(zip(paths, image_problems(paths, split), strict=True))
        kept = []
        for row in rows:
            if problem := problems[row.path]:
                error = FileNotFoundError if problem == MISSING_IMAGE else ValueError
                bad.report(SkippedExample(split, row.image_id, row.path, problem, is_bad_file=True), error)
            else:
                kept.append(row)
        if not kept:
            raise ValueError(f"{source}: the split {split!r} has no row with an image; give data.")
        result[split] = kept
    bad.log_summary(str(source))
    return result


def _rows_of(root: Path, path: Path, split: str, bad: BadExamples) -> list[FolderRow]:
    folder = ImageFolder(path.parent)
    rows = []
    for line, fields in json_lines(path):
        where = f"{path}, line {line}"
        if "file_name" not in fields:
            raise ValueError(f'{where}: no "file_name"; every line of an imagefolder names its image.')
        try:
            image = folder.resolve(fields["file_name"])
        except ValueError as error:
            bad.report(SkippedExample(split, str(fields["file_name"]), where, str(error)))
            continue
        if not is_utf8(json.dumps([image, fields], ensure_ascii=False)):
            bad.report(SkippedExample(split, fields["file_name"], where, "has a name or a text that is no UTF-8"))
            continue
        image_id = (path.parent / fields["file_name"]).relative_to(root).as_posix()
        rows.append(FolderRow(where, image_id, image, fields))
    return rows


class TextTemplate:
    """
    Pieces of text such as `"age {age}."`, joined by blanks; a piece is left out where one of its fields is empty.

    Args:
        pieces: the texts; a field is a plain name in braces, a brace itself is doubled.
        hidden_words: words that are replaced by `...` in what comes out, whatever their case; only where they stand
            alone, so that "cold" stays in "scolded".

    Raises:
        ValueError: a piece that is no template, or that asks for more than plain fields.
    """

    def __init__(self, pieces: Sequence[str], hidden_words: Sequence[str] = ()) -> None:
        self.pieces = [(piece, _fields(piece)) for piece in pieces]
        words = "|".join(re.escape(word) for word in sorted(hidden_words, key=len, reverse=True))
        self.hidden = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None

    def __call__(self, row: FolderRow) -> str:
        """The text of a row, which may be empty.

        Raises:
            ValueError: the row lacks a field, or it holds no text.
        """
        texts = []
        for piece, fields in self.pieces:
            values = {field: "" if row.value(field) is None else row.text(field) for field in fields}
            if all(values.values()):
                texts.append(piece.format_map(values))
        text = " ".join(texts)
        return text if self.hidden is None else self.hidden.sub(HIDDEN, text)


def _fields(piece: str) -> list[str]:
    try:
        parts = list(Formatter().parse(piece))
    except ValueError as error:
        raise ValueError(
            f"{piece!r} in `text_template` is no template ({error}); double the braces of text."
        ) from None
    fields = [field for _, field, _, _ in parts if field is not None]
    for _, field, form, conversion in parts:
        if field is not None and (not field.isidentifier() or form or conversion):
            raise ValueError(
                f"{piece!r} in `text_template` has the field {field!r}; write plain names, such as {{age}}."
            )
    return fields

"""An imagefolder: `metadata.jsonl` beside the images, one line an image or one line a caption.

    train/metadata.jsonl     {"file_name": "a.jpg", "text": "A dog."}        or "caption", or "captions": ["...", "..."]
    train/a.jpg ...
    validation/...

A single `metadata.jsonl` in the folder itself makes one split, `train`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fusion_captioner.data.annotated_images import (
    AnnotatedImage,
    BadExamples,
    SkippedExample,
    clean_captions,
    merge_repeated,
)
from fusion_captioner.data.columns import CAPTION_COLUMNS, as_captions, choose_column, value_at
from fusion_captioner.data.image_files import ImageFolder

METADATA = "metadata.jsonl"


def annotation_files(root: Path) -> dict[str, Path]:
    """The metadata file of every split, by the name of its sub-folder."""
    if (root / METADATA).is_file():
        return {"train": root / METADATA}
    return {path.parent.name: path for path in sorted(root.glob(f"*/{METADATA}"))}


def read_imagefolder(
    root: Path,
    source_splits: Sequence[str],
    split: str,
    bad: BadExamples,
    caption_column: str | None = None,
    id_column: str | None = None,
) -> list[AnnotatedImage]:
    """Read the named sub-folders, in the order of their lines; no image is opened.

    Lines of the same image are joined. The id of an image is `id_column`, else its path inside `root`.

    Args:
        root: the folder of the sub-folders.
        source_splits: names of sub-folders, joined into one split.
        split: the name that the joined split is to have, for messages.
        bad: told of images without caption, of ids that name two files and of names that leave their folder.
        caption_column: field of the captions; by default `captions`, `caption` or `text`, whichever is there.
        id_column: field of the image's id.

    Raises:
        ValueError: malformed JSON, or a line without the fields asked for.
    """
    files = annotation_files(root)
    images: list[AnnotatedImage] = []
    for source_split in source_splits:
        path = files[source_split]
        folder = ImageFolder(path.parent)
        for line, row in metadata_rows(path):
            if "file_name" not in row:
                raise ValueError(f'{path}, line {line}: no "file_name"; every line of an imagefolder names its image.')
            try:
                column = choose_column(caption_column, CAPTION_COLUMNS, list(row), "caption_column")
                captions = as_captions(value_at(row, column))
                image_id = None if id_column is None else str(value_at(row, id_column))
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from None
            try:
                image_path = folder.resolve(row["file_name"])
            except ValueError as error:
                bad.report(SkippedExample(split, str(row["file_name"]), f"{path}, line {line}", str(error)))
                continue
            if image_id is None:
                image_id = (path.parent / row["file_name"]).relative_to(root).as_posix()
            if captions := clean_captions(captions, split, image_id, image_path, bad):
                images.append(AnnotatedImage(image_id, image_path, captions))
    return merge_repeated(images, split, bad)


def metadata_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its line number.

    Raises:
        ValueError: a line is no JSON object, or the file is not UTF-8; the message names file and line.
    """
    with path.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}.")
                yield number, row
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: malformed JSON ({error.msg}, column {error.colno}).") from None
        except RecursionError:
            raise ValueError(f"{path}, line {number}: JSON nested too deep.") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8.") from None

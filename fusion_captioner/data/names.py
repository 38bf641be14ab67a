"""Columns and splits by name: the usual names, or the user's own choice; values inside nested columns
(`json.caption`)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Usual names; the first that exists is taken. `txt`, `jpg`, ... are those of WebDataset shards.
CAPTION_COLUMNS = (
    *("captions", "caption", "text", "txt", "sentences", "raw", "comment", "comments", "sentence", "description"),
    *("alt_text", "alt"),
)
NUMBERED_CAPTIONS = re.compile(r"(?:captions?|texts?|comments?|sentences?|descriptions?)_?(\d+)")
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
# Columns of a table or JSON file that name the file of an image
FILE_COLUMNS = (
    *("file_name", "filename", "image", "image_name", "image_path", "image_file", "file", "file_path", "filepath"),
    *("path", "img", "photo", "name", "image_id"),
)
ID_COLUMNS = ("image_id", "__key__")
SHOWN_COLUMNS = 20
SPLITS = {
    "train": re.compile(r"train(ing)?_?(\d{4})?"),
    "val": re.compile(r"(val|valid|validation|dev)_?(\d{4})?"),
    "test": re.compile(r"test_?(\d{4})?"),
}


def choose_column(name: str | None, usual: Sequence[str], available: Sequence[str], argument: str) -> str:
    """The column asked for, or else the first usual one that is available.

    Args:
        name: what the user gave for `argument`, a dotted path for a value inside a column, or None.
        usual: names to look for when `name` is None; case, and blanks for `_`, do not matter.
        available: the columns there are.
        argument: the name of the argument, for the message.

    Raises:
        ValueError: the column is not there; the message lists those that are.
    """
    if name is None:
        plain = {_plain(column): column for column in reversed(available)}
        for candidate in usual:
            if candidate in plain:
                return plain[candidate]
        raise ValueError(f"none of the columns {_shown(available)} is called {' or '.join(usual)}; give `{argument}`.")
    if name.split(".")[0] not in available:
        raise ValueError(f"`{argument}` is {name!r}, but the columns are {_shown(available)}.")
    return name


def value_at(row: Any, path: str) -> Any:
    """The value at a dotted path; a path through a list gives a list (`sentences.raw` of a list of dicts).

    Raises:
        ValueError: nothing is there.
    """
    value = row
    keys = path.split(".")
    for depth, key in enumerate(keys):
        if isinstance(value, list):
            return [value_at(item, ".".join(keys[depth:])) for item in value]
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"no value at {path!r}.")
        value = value[key]
    return value


def id_at(row: Any, path: str | None) -> str | None:
    """The id of an image at a dotted path; None: there is none, as it is null or empty, or no path is given.

    Raises:
        ValueError: nothing is there.
    """
    value = None if path is None else value_at(row, path)
    return None if value is None or value == "" else str(value)


def choose_captions(name: str | Sequence[str] | None, available: Sequence[str]) -> list[str]:
    """The columns of captions: those asked for, or else the first usual one, or `caption_0`, `caption_1`, ...

    Raises:
        ValueError: a column is not there; the message lists those that are.
    """
    if name is None:
        numbered = [(match, column) for column in available if (match := NUMBERED_CAPTIONS.fullmatch(_plain(column)))]
        if numbered and not {_plain(column) for column in available} & set(CAPTION_COLUMNS):
            return [column for _, column in sorted(numbered, key=lambda pair: int(pair[0][1]))]
    wanted = [name] if name is None or isinstance(name, str) else name
    return [choose_column(column, CAPTION_COLUMNS, available, "caption_column") for column in wanted]


def captions_at(row: Any, columns: Sequence[str]) -> list[Any]:
    """The captions of a row: of each column one, a list of them, or nothing. Of several columns, some may be empty."""
    captions: list[Any] = []
    for column in columns:
        value = value_at(row, column)
        of_column = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
        if len(columns) > 1:
            of_column = [text for text in of_column if not isinstance(text, str) or text.strip()]
        captions += of_column
    return captions


def _shown(columns: Sequence[str]) -> str:
    """For messages; a JSON object with a key per photo has thousands."""
    more = f", ... ({len(columns)} in all)" if len(columns) > SHOWN_COLUMNS else ""
    return ", ".join(columns[:SHOWN_COLUMNS]) + more


def _plain(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def usual_name(source_split: str) -> str:
    """`train2017` → `train`, `validation` → `val`, `test` → `test`; other names stay, made fit for `datasets`."""
    for name, pattern in SPLITS.items():
        if pattern.fullmatch(source_split.lower()):
            return name
    return re.sub(r"\W+", "_", source_split)


def choose_splits(
    available: Sequence[str], wanted: Mapping[str, str] | None, joins_train: str | None = None
) -> dict[str, list[str]]:
    """Which splits of the source make up each split.

    Args:
        available: the source's names.
        wanted: `{"train": "train2014+val2014", "val": "minival"}`, only these are loaded; None gives every split
            under its usual name.
        joins_train: a split that is part of `train` unless `wanted` says otherwise (Karpathy's `restval`).

    Returns:
        Split → source splits.

    Raises:
        ValueError: a name that `datasets` does not allow, a source split that does not exist, or two source splits
            with the same usual name.
    """
    names = ", ".join(available)
    if wanted is not None:
        for name, joined in wanted.items():
            if not re.fullmatch(r"\w+(\.\w+)*", name) or name.lower() == "all" or not isinstance(joined, str):
                raise ValueError(
                    f"`splits` has {name!r}: {joined!r}; a split has a name of letters, digits and _ other than "
                    "'all', and its sources are one text, joined by +."
                )
        chosen = {name: joined.split("+") for name, joined in wanted.items()}
        for name, sources in chosen.items():
            for source in sources:
                if source not in available:
                    raise ValueError(
                        f"`splits` takes {name!r} from {source!r}, but the source has the splits {names}."
                    )
        if not chosen:
            raise ValueError(f"`splits` is empty; choose among {names}, or leave it out to load them all.")
        return chosen
    chosen = {}
    for source in available:
        chosen.setdefault("train" if source == joins_train else usual_name(source), []).append(source)
    for name, sources in chosen.items():
        if len(set(sources) - {joins_train}) > 1:
            raise ValueError(
                f"{' and '.join(sources)} would both be the split {name!r}; choose one with `splits`, e.g. "
                f'{{"{name}": "{sources[0]}"}}, or join them: {{"{name}": "{"+".join(sources)}"}}.'
            )
    return chosen


def split_in_name(name: str) -> str | None:
    """The split in the name of a file: `coco_karpathy_train.json` → `train`; None: none, or several."""
    words = re.split(r"[\W_]+", Path(name).stem)
    found = [word for word in words if any(pattern.fullmatch(word.lower()) for pattern in SPLITS.values())]
    return found[0] if len(found) == 1 else None

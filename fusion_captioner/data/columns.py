"""Columns by name: which one holds the captions, and values inside nested columns (`json.caption`)."""

from collections.abc import Mapping, Sequence
from typing import Any

# Names in common use, the first that is there is taken. `txt`, `jpg`, ... are those of WebDataset shards.
CAPTION_COLUMNS = ("captions", "caption", "text", "txt", "sentences")
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
ID_COLUMNS = ("image_id", "__key__")


def choose_column(name: str | None, usual: Sequence[str], available: Sequence[str], argument: str) -> str:
    """The column asked for, or else the first usual one that is available.

    Args:
        name: what the user gave for `argument`, a dotted path for a value inside a column, or None.
        usual: names to look for when `name` is None.
        available: the columns there are.
        argument: the name of the argument, for the message.

    Raises:
        ValueError: the column is not there; the message lists those that are.
    """
    if name is None:
        for candidate in usual:
            if candidate in available:
                return candidate
        raise ValueError(
            f"none of the columns {', '.join(available)} is called {' or '.join(usual)}; give `{argument}`."
        )
    if name.split(".")[0] not in available:
        raise ValueError(f"`{argument}` is {name!r}, but the columns are {', '.join(available)}.")
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


def as_captions(value: Any) -> list[Any]:
    """The captions of one row as a list, whether it held one text, a list of them, or nothing."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]

"""Names of splits: `train`, `val` and `test` whatever the source calls them, or the user's own choice."""

import re
from collections.abc import Mapping, Sequence

USUAL_NAMES = {
    "train": re.compile(r"train(ing)?_?(\d{4})?"),
    "val": re.compile(r"(val|valid|validation|dev)_?(\d{4})?"),
    "test": re.compile(r"test_?(\d{4})?"),
}


def usual_name(source_split: str) -> str:
    """`train2017` → `train`, `validation` → `val`, `test` → `test`; other names stay, made fit for `datasets`."""
    for name, pattern in USUAL_NAMES.items():
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

"""Images with a text and a label: the rows that the classification head learns from."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from fusion_captioner.data.arguments import LabelledDataArguments
from fusion_captioner.data.folder_rows import FolderRow, TextTemplate, read_folder_rows

FEATURES = datasets.Features(
    {
        "image": datasets.Image(decode=False),
        "image_id": datasets.Value("string"),
        "text": datasets.Value("string"),
        "group": datasets.Value("string"),
    }
)
# What the column `label` holds, by `data.problem_type`
LABEL_FEATURES = {
    "single_label_classification": datasets.Value("int64"),
    "multi_label_classification": datasets.List(datasets.Value("float32")),
    "regression": datasets.Value("float32"),
}


def load_labelled_images(
    data: LabelledDataArguments, splits: Mapping[str, int | None], names: Sequence[str] | None = None
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Rows of splits, their labels as the head takes them.

    Args:
        data: what is read, and how.
        splits: split → number of rows to take from its beginning, None: all.
        names: of the labels, in the order of their numbers, of a classifier that exists; None: those of `data.labels`,
            or else those of the first split, sorted.

    Returns:
        split → columns `image` (`datasets.Image(decode=False)`), `image_id`, `text` (white space made single blanks),
        `label` (a class number; of several labels 1 or 0 for each name; of regression the value) and `group` (that
        which rows belong together by; without a column of it the image's id); and the labels' names, of regression
        that of the column.

    Raises:
        FileNotFoundError, ValueError: see [`read_folder_rows`]; a field that is missing or no text; a label that is
            not among the names; names that `data.labels` has in another order, or not at all.
    """
    if names is not None and data.labels is not None and list(names) != data.labels:
        raise ValueError(
            f"`data.labels` ({data.labels}) differ from the labels of the classifier, {list(names)}, whose order is "
            "that of its outputs; unset `data.labels`, or write them so."
        )
    pieces = data.text_template or ([f"{{{data.text_column}}}"] if data.text_column is not None else [])
    template = TextTemplate(pieces, data.hidden_words)
    read = read_folder_rows(data.source, list(splits), data.splits, data.skip_bad_images)
    taken = {split: rows[: splits[split]] for split, rows in read.items()}
    if data.problem_type == "regression":
        names = [data.label_column]
    names = list(names or data.labels or _names(next(iter(taken.values())), data))
    labels = {value: label for label, values in data.label_groups.items() for value in values}
    numbers = {name: number for number, name in enumerate(names)}
    features = datasets.Features({**FEATURES, "label": LABEL_FEATURES[data.problem_type]})
    result = {}
    for split, rows in taken.items():
        entries = [
            {
                "image": {"path": row.path, "bytes": None},
                "image_id": row.image_id,
                "text": template(row) if "text" in data.modalities else "",
                "label": _label(row, data, numbers, labels),
                "group": row.image_id if data.group_column is None else row.text(data.group_column),
            }
            for row in rows
        ]
        result[split] = datasets.Dataset.from_list(entries, features=features)
    return result, names


def class_weights(labels: Sequence[int], count: int, exponent: float) -> list[float]:
    """Weights of the classes in the loss, by their rarity, whose mean over the rows is 1.

    Args:
        labels: class numbers of the training rows.
        count: number of classes.
        exponent: 0: all weigh the same; 1: the rows of each class weigh the same together.

    Raises:
        ValueError: a class has no row.
    """
    support = Counter(labels)
    for number in range(count):
        if not support[number]:
            raise ValueError(
                f"label {number} of {count} has no training row, so that `data.class_balance` ({exponent}) cannot "
                "weigh it; leave the label out, or set `data.class_balance` to 0."
            )
    weights = [support[number] ** -exponent for number in range(count)]
    mean = sum(weights[label] for label in labels) / len(labels)
    return [weight / mean for weight in weights]


def positive_weights(labels: Sequence[Sequence[float]], names: Sequence[str], exponent: float) -> list[float]:
    """Weights of having a label in the loss of several labels a row, by how much rarer that is than not having it.

    Args:
        labels: of the training rows, 1 or 0 for each name.
        exponent: 0: both weigh the same; 1: the rows that have a label weigh as much together as those that have not.

    Raises:
        ValueError: a label that no row has.
    """
    support = np.asarray(labels).sum(axis=0)
    if not support.all():
        raise ValueError(
            f"label {names[int(support.argmin())]!r} has no training row, so that `data.class_balance` ({exponent}) "
            "cannot weigh it; leave the label out, or set `data.class_balance` to 0."
        )
    # a label that all rows have would weigh nothing
    return [float(max(len(labels) - count, 1) / count) ** exponent for count in support]


def _names(rows: Sequence[FolderRow], data: LabelledDataArguments) -> list[str]:
    values = {value: label for label, values in data.label_groups.items() for value in values}
    found = set()
    for row in rows:
        for label in _values(row, data):
            if not isinstance(label, str):
                raise ValueError(
                    f"{row.where}: the label {label!r} is no text; name the labels of numbers in `data.labels`, in "
                    "order, or set `data.problem_type` to 'regression' for values."
                )
            found.add(values.get(label, label))
    if len(found) < 2:
        only = f"all training rows have the label {found.pop()!r}" if found else "no training row has a label"
        raise ValueError(f"{data.source}: {only}; it takes two or more.")
    return sorted(found)


def _values(row: FolderRow, data: LabelledDataArguments) -> list[Any]:
    """The values that a row's label column holds: one, or those of its list."""
    value = row.value(data.label_column)
    if data.problem_type != "multi_label_classification":
        if isinstance(value, list):
            raise ValueError(
                f"{row.where}: the label {value!r} is a list; give one label, or set `data.problem_type` to "
                "'multi_label_classification'."
            )
        return [value]
    if not isinstance(value, list):
        raise ValueError(
            f"{row.where}: the label {value!r} is no list, and `data.problem_type` is 'multi_label_classification'; "
            "write it as a list, [] for none."
        )
    return value


def _label(
    row: FolderRow, data: LabelledDataArguments, numbers: Mapping[str, int], labels: Mapping[str, str]
) -> int | float | list[float]:
    """What the column `label` gets."""
    values = _values(row, data)
    if data.problem_type == "regression":
        (value,) = values
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(
                f"{row.where}: {data.label_column!r} is {value!r}, and `data.problem_type` is 'regression'; write a "
                "number."
            )
        return float(value)
    found = [_number(row, value, data, numbers, labels) for value in values]
    if data.problem_type == "single_label_classification":
        return found[0]
    return [float(number in found) for number in range(len(numbers))]


def _number(
    row: FolderRow, value: Any, data: LabelledDataArguments, numbers: Mapping[str, int], labels: Mapping[str, str]
) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(numbers):
        return value
    if isinstance(value, str):
        name = labels.get(value, value)
        if name in numbers:
            return numbers[name]
        if data.other_label is not None:
            return numbers[data.other_label]
    raise ValueError(
        f"{row.where}: the label {value!r} is none of {', '.join(numbers)}; correct it, or name it in `data.labels`."
    )

"""Images with a text and a label: the rows that the classification head learns from."""

from collections import Counter
from collections.abc import Mapping, Sequence

import datasets

from fusion_captioner.training.folder_rows import FolderRow, read_folder_rows
from fusion_captioner.training.row_arguments import LabelledDataArguments
from fusion_captioner.training.text_template import TextTemplate

FEATURES = datasets.Features(
    {
        "image": datasets.Image(decode=False),
        "image_id": datasets.Value("string"),
        "text": datasets.Value("string"),
        "label": datasets.Value("int64"),
        "group": datasets.Value("string"),
    }
)


def load_labelled_images(
    data: LabelledDataArguments, splits: Mapping[str, int | None], names: Sequence[str] | None = None
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Rows of splits, their labels as numbers.

    Args:
        data: what is read, and how.
        splits: split → number of rows to take from its beginning, None: all.
        names: of the labels, in the order of their numbers, of a classifier that exists; None: those of `data.labels`,
            or else those of the first split, sorted.

    Returns:
        split → columns `image` (`datasets.Image(decode=False)`), `image_id`, `text` (white space made single blanks),
        `label` (number) and `group` (that which rows belong together by; without a column of it the image's id); and
        the labels' names.

    Raises:
        FileNotFoundError, ValueError: see [`read_folder_rows`]; a field that is missing or no text; a label that is not
            among the names; names that `data.labels` has in another order, or not at all.
    """
    if names is not None and data.labels is not None and list(names) != data.labels:
        raise ValueError(
            f"`data.labels` ({data.labels}) differ from the labels of the classifier, {list(names)}, whose order is that "
            "of its outputs; unset `data.labels`, or write them so."
        )
    pieces = data.text_template or ([f"{{{data.text_column}}}"] if data.text_column is not None else [])
    template = TextTemplate(pieces, data.hidden_words)
    read = read_folder_rows(data.source, list(splits), data.splits, data.skip_bad_images)
    taken = {split: rows[: splits[split]] for split, rows in read.items()}
    names = list(names or data.labels or _names(next(iter(taken.values())), data))
    labels = {value: label for label, values in data.label_groups.items() for value in values}
    numbers = {name: number for number, name in enumerate(names)}
    result = {}
    for split, rows in taken.items():
        entries = [
            {
                "image": {"path": row.path, "bytes": None},
                "image_id": row.image_id,
                "text": template(row) if "text" in data.modalities else "",
                "label": _number(row, data, numbers, labels),
                "group": row.image_id if data.group_column is None else row.text(data.group_column),
            }
            for row in rows
        ]
        result[split] = datasets.Dataset.from_list(entries, features=FEATURES)
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
                f"label {number} of {count} has no training row, so that `data.class_balance` ({exponent}) cannot weigh "
                "it; leave the label out, or set `data.class_balance` to 0."
            )
    weights = [support[number] ** -exponent for number in range(count)]
    mean = sum(weights[label] for label in labels) / len(labels)
    return [weight / mean for weight in weights]


def _names(rows: Sequence[FolderRow], data: LabelledDataArguments) -> list[str]:
    values = {value: label for label, values in data.label_groups.items() for value in values}
    found = set()
    for row in rows:
        label = row.value(data.label_column)
        if not isinstance(label, str):
            raise ValueError(
                f"{row.where}: the label {label!r} is no text; name the labels of numbers in `data.labels`, in order."
            )
        found.add(values.get(label, label))
    if len(found) < 2:
        raise ValueError(f"{data.source}: all training rows have the label {found.pop()!r}; it takes two or more.")
    return sorted(found)


def _number(row: FolderRow, data: LabelledDataArguments, numbers: Mapping[str, int], labels: Mapping[str, str]) -> int:
    value = row.value(data.label_column)
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

"""Questions with choices about images: the rows that the multiple-choice head learns from."""

from collections.abc import Mapping

import datasets

from fusion_captioner.data.arguments import ChoiceDataArguments
from fusion_captioner.data.folder_rows import FolderRow, read_folder_rows

# `label` of a question whose right answer is not known
UNKNOWN = -100
TEXT_FEATURES = {
    "question": datasets.Value("string"),
    "choices": datasets.List(datasets.Value("string")),
    "label": datasets.Value("int64"),
}
FEATURES = datasets.Features(
    {"image": datasets.Image(decode=False), "image_id": datasets.Value("string"), **TEXT_FEATURES}
)


def load_choice_questions(data: ChoiceDataArguments, splits: Mapping[str, int | None]) -> dict[str, datasets.Dataset]:
    """Questions of an imagefolder.

    Args:
        data: what is read, and how.
        splits: split → number of rows to take from its beginning, None: all.

    Returns:
        split → columns `image` (`datasets.Image(decode=False)`), `image_id`, `question`, `choices` (list of str) and
        `label` (number of the right choice).

    Raises:
        FileNotFoundError, ValueError: see [`read_folder_rows`]; a field that is missing, choices that are no texts, a
            label that is none of them.
    """
    read = read_folder_rows(data.source, list(splits), data.splits, data.skip_bad_images)
    return {
        split: datasets.Dataset.from_list([_entry(row, data) for row in rows[: splits[split]]], features=FEATURES)
        for split, rows in read.items()
    }


def _entry(row: FolderRow, data: ChoiceDataArguments) -> dict[str, object]:
    choices, label = row.value(data.choices_column), row.value(data.label_column)
    check_choices(choices, label, row.where)
    return {
        "image": {"path": row.path, "bytes": None},
        "image_id": row.image_id,
        "question": row.text(data.question_column),
        "choices": choices,
        "label": label,
    }


def check_choices(choices: object, label: object, where: str) -> None:
    """
    Raises:
        ValueError: `choices` is no list of at least two texts, or `label` the number of none of them.
    """
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        raise ValueError(f"{where}: the choices {choices!r} must be a list of two texts or more; correct them.")
    if label == UNKNOWN:
        return
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        raise ValueError(
            f"{where}: the label {label!r} is the number of none of its {len(choices)} choices; count them from 0, or "
            f"give {UNKNOWN} where the right one is not known."
        )

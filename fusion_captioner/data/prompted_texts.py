"""Images with a prompt and the text that follows it: the rows that a captioner learns to answer and to report from."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import datasets
from transformers.utils.chat_template_utils import render_jinja_template

from fusion_captioner.data.arguments import DataArguments, PromptDataArguments
from fusion_captioner.data.caption_datasets import check_image_ids, load_caption_dataset, source_names
from fusion_captioner.data.caption_folder import FEATURES as CAPTION_FEATURES
from fusion_captioner.data.choice_questions import UNKNOWN, check_choices
from fusion_captioner.data.folder_rows import FolderRow, TextTemplate, read_folder_rows
from fusion_captioner.processing_fusion_captioner import CHAT_TEMPLATE

logger = logging.getLogger(__name__)

# `kind` of the rows of `caption_source`
CAPTION = "caption"
FEATURES = datasets.Features(
    {**CAPTION_FEATURES, "turns": datasets.List(datasets.Value("string")), "kind": datasets.Value("string")}
)


def load_prompted_texts(
    data: PromptDataArguments, splits: Mapping[str, int | None], learned: str | None = None
) -> dict[str, datasets.Dataset]:
    """Rows of splits.

    Args:
        data: what is read, and how.
        splits: split → number of rows to take from its beginning, None: all.
        learned: the split among them that is trained on: its prompts have up to `data.max_turns` questions.

    Returns:
        split → columns `image` (`datasets.Image(decode=False)`), `image_id`, `captions` (list of the one text to
        follow), `turns` (what is said before it, by user and assistant in turn; empty where a caption is asked for)
        and `kind` (of the question, in lower case; "": of none).

    Raises:
        FileNotFoundError, ValueError: see [`read_folder_rows`]; a field that is missing or no text; choices or a label
            that fit no choice; a split of which no row has an answer.
    """
    parts = (data.train_split, data.eval_split) if data.folds else ()
    sources = {split: data.train_split if split in parts else split for split in splits}
    read = read_folder_rows(data.source, list(dict.fromkeys(sources.values())), data.splits, data.skip_bad_images)
    template = TextTemplate(data.text_template or [f"{{{data.question_column}}}"])
    result = {}
    for split, limit in splits.items():
        rows = read[sources[split]]
        if split in parts:
            held_out = fold_of_images([row.image_id for row in rows], int(data.folds or 1))
            rows = [row for row in rows if (held_out[row.image_id] == data.fold) == (split == data.eval_split)]
        entries = [_entry(row, data, template) for row in rows[:limit]]
        kept = [entry for entry in entries if entry["captions"][0]]
        if len(kept) < len(entries):
            missing = len(entries) - len(kept)
            logger.info("%s: %d rows of the split %r have no answer and are left out", data.source, missing, split)
        if not kept:
            raise ValueError(f"{data.source}: no row of the split {split!r} has an answer; name the right column.")
        if split == learned and data.max_turns > 1:
            _put_turns_before(kept, data.max_turns)
        result[split] = datasets.Dataset.from_list(kept, features=FEATURES)
    return result


def load_captions(data: PromptDataArguments, splits: Mapping[str, int | None]) -> dict[str, datasets.Dataset]:
    """Those of the splits that `data.caption_source` has, in the columns of [`load_prompted_texts`]; image ids begin
    with the source's name, to be unique in the run."""
    source = str(data.caption_source)
    loaded = load_caption_dataset(source, skip_bad_images=data.skip_bad_images)
    if data.train_split not in loaded:
        raise ValueError(
            f"`data.caption_source` ({source}) has no split {data.train_split!r}; there are {', '.join(loaded)}."
        )
    result = {}
    for split, limit in splits.items():
        if split in loaded:
            rows = loaded[split] if limit is None else loaded[split].take(limit)
            result[split] = rows.map(
                lambda row: {"image_id": f"{Path(source).name}/{row['image_id']}", "turns": [], "kind": CAPTION},
                features=FEATURES,
                desc=f"naming images of {Path(source).name}",
            )
    return result


def add_questions(rows: datasets.Dataset, data: DataArguments) -> datasets.Dataset:
    """
    The training rows of captions, and those of `data.question_sources`: an image with its answers as `captions`.

    The column `prompts` has the question of each answer, as a chat gives it, and "" of each caption. Of several
    languages the answers are in the first.

    Raises:
        ValueError: two images have the same id.
    """
    names = source_names(data)
    parts = [rows.add_column("prompts", [[""] * len(texts) for texts in rows["captions"]])]  # type: ignore[call-arg]
    for where in data.question_sources:
        asked = PromptDataArguments(
            **where, train_split="train", eval_split=None, skip_bad_images=data.skip_bad_images
        )
        images: dict[str, dict[str, Any]] = {}
        for row in load_prompted_texts(asked, {"train": None})["train"]:
            image_id = f"{names[where['source']]}/{row['image_id']}"
            image = images.setdefault(
                image_id, {"image": row["image"], "image_id": image_id, "captions": [], "prompts": []}
            )
            image["captions"] += row["captions"]
            image["prompts"].append(row["turns"])
        for image in images.values():
            image["prompts"] = render_prompts(image["prompts"])
            if data.languages:
                image["languages"] = [next(iter(data.languages))] * len(image["captions"])
        parts.append(datasets.Dataset.from_list(list(images.values()), features=parts[0].features))
    check_image_ids(parts)
    return datasets.concatenate_datasets(parts)


def fold_of_images(image_ids: Sequence[str], folds: int) -> dict[str, int]:
    """Image → number of its fold: the images are shuffled, always alike, and dealt out.

    Raises:
        ValueError: fewer images than folds.
    """
    images = sorted(set(image_ids))
    if len(images) < folds:
        raise ValueError(f"`data.folds` ({folds}) are more than the {len(images)} images; choose fewer.")
    Random(0).shuffle(images)
    return {image_id: place % folds for place, image_id in enumerate(images)}


def render_prompts(conversations: Sequence[Sequence[str]], chat_template: str = CHAT_TEMPLATE) -> list[str]:
    """The prompts of conversations, each turns of user and assistant, as `apply_chat_template` would make them."""
    chats = [
        [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
        for turns in conversations
    ]
    # its annotation says str, and it gives the texts and, behind them, what tokens an assistant would have said
    rendered: Any = render_jinja_template(chats, chat_template=chat_template, add_generation_prompt=True)
    return rendered[0]


def _entry(row: FolderRow, data: PromptDataArguments, template: TextTemplate) -> dict[str, Any]:
    question = template(row) if "text" in data.modalities else ""
    return {
        "image": {"path": row.path, "bytes": None},
        "image_id": row.image_id,
        "captions": [_answer(row, data)],
        "turns": [question] if question else [],
        "kind": "" if data.answer_type_column is None else row.text(data.answer_type_column).lower(),
    }


def _answer(row: FolderRow, data: PromptDataArguments) -> str:
    if data.choices_column is None:
        return row.text(str(data.answer_column))
    choices, label = row.value(data.choices_column), row.value(data.label_column)
    check_choices(choices, label, row.where)
    return "" if label == UNKNOWN else " ".join(choices[label].split())


def _put_turns_before(entries: list[dict[str, Any]], max_turns: int) -> None:
    """Other questions about the image, with their answers, before that of each entry."""
    of_image: dict[str, list[int]] = defaultdict(list)
    for number, entry in enumerate(entries):
        if entry["turns"]:
            of_image[entry["image_id"]].append(number)
    asked = [(entry["turns"], entry["captions"]) for entry in entries]
    for number, entry in enumerate(entries):
        others = [other for other in of_image[entry["image_id"]] if other != number]
        if entry["turns"] and others:
            drawn = Random(f"{number}/{entry['image_id']}")
            count = min(drawn.randrange(max_turns), len(others))
            before = [asked[other] for other in drawn.sample(others, count)]
            entry["turns"] = [text for turns, answers in before for text in (*turns, *answers)] + entry["turns"]

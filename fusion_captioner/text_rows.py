"""The rows of a batch of texts: which prompt stands before which caption, how long a row may be, and its padding."""

from typing import Any


def prompts_and_captions(
    num_images: int | None, text: str | list[str] | None, text_target: str | list[str] | list[list[str]] | None
) -> tuple[list[str], list[str] | None]:
    """A prompt for every row, and where they are given a caption."""
    if text_target is None:
        prompts = [text] * (num_images or 1) if isinstance(text, str) else _texts(text, "text")
        if num_images and len(prompts) % num_images:
            raise ValueError(f"`text` holds {len(prompts)} prompts for {num_images} `images`; give as many for each.")
        return prompts, None

    captions = _captions(num_images, text_target)
    per_image = len(captions) // (num_images or len(captions))
    if text is None or isinstance(text, str):
        return [text or ""] * len(captions), captions
    prompts = _texts(text, "text")
    if len(prompts) == num_images:
        prompts = [prompt for prompt in prompts for _ in range(per_image)]
    if len(prompts) != len(captions):
        raise ValueError(f"`text` holds {len(prompts)} prompts for {len(captions)} captions; give one for each.")
    return prompts, captions


def _captions(num_images: int | None, text_target: str | list[str] | list[list[str]]) -> list[str]:
    if isinstance(text_target, str):
        text_target = [text_target]
    if isinstance(text_target, list | tuple) and text_target and isinstance(text_target[0], list | tuple):
        counts = sorted({len(captions) for captions in text_target})
        if len(counts) > 1:
            raise ValueError(
                f"`text_target` holds {counts[0]} to {counts[-1]} captions per image; give as many for each."
            )
        if num_images is not None and len(text_target) != num_images:
            raise ValueError(f"`text_target` holds captions of {len(text_target)} images for {num_images} `images`.")
        text_target = [caption for captions in text_target for caption in captions]
    captions = _texts(text_target, "text_target")
    if num_images and len(captions) % num_images:
        raise ValueError(
            f"`text_target` holds {len(captions)} captions for {num_images} `images`; give as many for each."
        )
    empty = next((index for index, caption in enumerate(captions) if not caption.strip()), None)
    if empty is not None:
        raise ValueError(f"`text_target[{empty}]` is empty; leave out captions without text.")
    return captions


def count_choices(num_images: int | None, choices: list[list[str]]) -> list[int]:
    """How many choices each question has."""
    if not isinstance(choices, list | tuple) or not choices:
        raise ValueError(f"`choices` ({choices!r}) must be a list with the list of choices of each question.")
    for index, answers in enumerate(choices):
        if not isinstance(answers, list | tuple) or not answers:
            raise ValueError(
                f"`choices[{index}]` ({answers!r}) must be a list of at least one text; leave the question out."
            )
        for number, answer in enumerate(answers):
            if not isinstance(answer, str) or not answer.strip():
                raise ValueError(f"`choices[{index}][{number}]` ({answer!r}) must be a text that is not empty.")
    if num_images is not None and num_images != len(choices):
        raise ValueError(
            f"`choices` holds those of {len(choices)} questions for {num_images} `images`; give one each."
        )
    return [len(answers) for answers in choices]


def repeat_questions(text: str | list[str] | None, counts: list[int]) -> list[str]:
    """The question before each choice."""
    questions = [text or ""] * len(counts) if text is None or isinstance(text, str) else _texts(text, "text")
    if len(questions) != len(counts):
        raise ValueError(f"`text` holds {len(questions)} questions for `choices` of {len(counts)}; give one for each.")
    return [question for question, count in zip(questions, counts) for _ in range(count)]


def with_missing_choices(rows: list[list[int]], counts: list[int]) -> list[list[int]]:
    """As many rows for each question, empty ones where it has fewer choices."""
    remaining = iter(rows)
    return [next(remaining) if number < count else [] for count in counts for number in range(max(counts))]


def _texts(texts: Any, name: str) -> list[str]:
    if not isinstance(texts, list | tuple) or not texts:
        raise ValueError(f"`{name}` ({texts!r}) must be a text or a list of at least one.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"`{name}[{index}]` ({text!r}) must be a text, not a {type(text).__name__}.")
    return list(texts)


def fit_prompt(row: list[int], end: list[int], prompt: str, limit: int | None, truncation: bool | None) -> list[int]:
    if limit is not None and len(row) + len(end) > limit:
        if not truncation:
            raise ValueError(too_long(prompt, len(row) + len(end), limit, "is longer than"))
        row = row[: max(limit - len(end), 0)]
    return row + end


def too_long(text: str, length: int, limit: int | None, relation: str) -> str:
    return (
        f"the text {text[:40]!r}{'...' if len(text) > 40 else ''} of {length} tokens, special tokens included, "
        f"{relation} the maximum of {limit}; shorten it or raise `max_length` (by default the tokenizer's "
        "`model_max_length`)."
    )


def padded_width(
    rows: list[list[int]], padding: bool | str, limit: int | None, pad_to_multiple_of: int | None
) -> int | None:
    """The length that all rows are padded to, None where they stay as they are."""
    if padding is False or padding == "do_not_pad":
        return None
    if padding == "max_length":
        if limit is None:
            raise ValueError(
                "`padding` ('max_length') needs `max_length`, since the tokenizer has no `model_max_length`."
            )
        width = limit
    elif padding is True or padding == "longest":
        width = max(map(len, rows))
    else:
        raise ValueError(f"`padding` ({padding!r}) must be True, False, 'longest' or 'max_length'.")
    return width if pad_to_multiple_of is None else -(-width // pad_to_multiple_of) * pad_to_multiple_of


def padded(rows: list[list[Any]], width: int | None, value: Any, on_the_left: bool) -> list[list[Any]]:
    if width is None:
        return rows
    if on_the_left:
        return [[value] * (width - len(row)) + row for row in rows]
    return [row + [value] * (width - len(row)) for row in rows]

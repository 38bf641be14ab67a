"""Scores of answers to questions: exact match and token-F1, of closed and open questions apart.

N: questions
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fusion_captioner.metrics.tokenization import fold_caption, tokenize_caption

_ARTICLES = frozenset(("a", "an", "the"))


def answer_words(answer: str) -> list[str]:
    """Words of an answer as they are compared: lower case, without punctuation and articles, as in visual question
    answering (Antol et al. 2015, section 3). What is an article and nothing else, as a choice "A", stays.

    Punctuation separates, since many tokenizers put spaces around it: "T2-weighted" and "T2 - weighted" are equal.
    Scripts without spaces are split by character, as captions are.
    """
    words = tokenize_caption(fold_caption(answer).replace("-", " ").replace("'", " "))
    return [word for word in words if word not in _ARTICLES] or words


def exact_matches(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Whether each prediction has the words of its reference, in their order: (N,) bool.

    Raises:
        ValueError: numbers of texts that differ or are 0, or something that is no text.
    """
    _check(predictions, references)
    return np.array([answer_words(p) == answer_words(r) for p, r in zip(predictions, references, strict=True)])


def token_f1(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """F1 of the words of each prediction and of its reference, as bags (Rajpurkar et al. 2016, section 6.1): (N,)
    float64.

    Raises:
        ValueError: as `exact_matches`.
    """
    _check(predictions, references)
    return np.array([_f1(answer_words(p), answer_words(r)) for p, r in zip(predictions, references, strict=True)])


def answer_scores(
    predictions: Sequence[str], references: Sequence[str], kinds: Sequence[str] | None = None
) -> dict[str, float]:
    """Mean scores of answers.

    ```python
    >>> answer_scores(["Yes.", "the left lung"], ["yes", "right lung"], ["closed", "open"])["open_token_f1"]
    0.5
    ```

    Args:
        predictions, references: one answer per question, N each.
        kinds: the kind of each question, such as `closed` or `open`; "" for no kind.

    Returns:
        `"exact_match"` and `"token_f1"`, and the same for the questions of each kind: `"closed_exact_match"`, ...

    Raises:
        ValueError: different numbers of answers, none at all, or an answer that is not a string.
    """
    values = {"exact_match": exact_matches(predictions, references), "token_f1": token_f1(predictions, references)}
    scores = {name: float(value.mean()) for name, value in values.items()}
    if kinds is not None:
        if len(kinds) != len(predictions):
            raise ValueError(f"`kinds` holds {len(kinds)} of {len(predictions)} questions; give one of each.")
        named = np.array(kinds)
        for kind in sorted(set(kinds) - {""}):
            scores |= {f"{kind}_{name}": float(value[named == kind].mean()) for name, value in values.items()}
    return scores


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    common = (Counter(prediction) & Counter(reference)).total()
    return 2 * common / (len(prediction) + len(reference))


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    for name, texts in (("predictions", predictions), ("references", references)):
        wrong = [texts] if isinstance(texts, str) else [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise ValueError(f"`{name}` must be a list with one answer a question, and holds {wrong[0]!r}.")
    if len(predictions) != len(references) or not len(predictions):
        raise ValueError(
            f"`predictions` ({len(predictions)}) and `references` ({len(references)}) must be as many answers, at "
            "least one."
        )

"""Scores of labels: accuracy, F1 of each class and their mean, AUROC with its interval; of one label a row, or
several.

N: rows, C: classes
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def classification_scores(
    predictions: ArrayLike, labels: ArrayLike, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Accuracy, F1 and scores of each class, for one class per row.

    Args:
        predictions, labels: class numbers, N each.
        names: of the C classes, in the order of their numbers (`config.id2label`).

    Returns:
        `"accuracy"` and `"macro_f1"`, the mean F1 of the classes that are among labels or predictions; and for every
        class `"precision"`, `"recall"`, `"f1"` (0 where nothing could be counted) and `"support"`, its rows.

    Raises:
        ValueError: numbers of rows that differ or are 0, or a class number without a name.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(
            f"`predictions` {predictions.shape} and `labels` {labels.shape} must be as many class numbers, at least "
            "one."
        )
    for name, numbers in (("predictions", predictions), ("labels", labels)):
        wrong = numbers[(numbers < 0) | (numbers >= len(names))]
        if len(wrong):
            raise ValueError(f"`{name}` holds class {wrong[0]}, and there are {len(names)} `names`; number from 0.")
    counts = np.zeros((len(names), len(names)), dtype=np.int64)  # (label, prediction)
    np.add.at(counts, (labels, predictions), 1)
    right, support, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    report, macro_f1 = _by_class(right, support, predicted, names)
    return {"accuracy": float(right.sum() / len(labels)), "macro_f1": macro_f1}, report


def multi_label_scores(
    logits: ArrayLike, labels: ArrayLike, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores for rows with any number of labels.

    Args:
        logits: (N, C), above 0 where the label is predicted.
        labels: (N, C), 1 where it has it, else 0.
        names: of the C labels, in the order of their numbers (`config.id2label`).

    Returns:
        `"micro_f1"`, of all decisions together; `"macro_f1"`, the mean F1 of the labels that occur or are
        predicted; `"exact_match"`, the share of rows with every label right; and `"auroc"`, the mean over the labels
        that some rows have and some have not, if there are any. For every label what `classification_scores` reports
        and, where it is defined, its `"auroc"`.

    Raises:
        ValueError: shapes that differ, no row, labels other than 0 and 1, or logits that are not finite.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.shape != labels.shape or logits.ndim != 2 or logits.shape[1] != len(names) or not len(labels):
        raise ValueError(
            f"`logits` {logits.shape} and `labels` {labels.shape} must have a row or more, and a column for each of "
            f"the {len(names)} `names`."
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"`labels` must be 0 or 1, and one is {labels[~np.isin(labels, (0, 1))][0]}.")
    predictions, truth = logits > 0, labels == 1
    right, support, predicted = (predictions & truth).sum(axis=0), truth.sum(axis=0), predictions.sum(axis=0)
    report, macro_f1 = _by_class(right, support, predicted, names)
    ranked = [number for number in range(len(names)) if 0 < support[number] < len(labels)]
    for number in ranked:
        report[names[number]]["auroc"] = auroc(logits[:, number], labels[:, number])
    numbers = {
        "micro_f1": float(2 * right.sum() / max(predicted.sum() + support.sum(), 1)),
        "macro_f1": macro_f1,
        "exact_match": float((predictions == truth).all(axis=1).mean()),
    }
    if ranked:
        numbers["auroc"] = float(np.mean([report[names[number]]["auroc"] for number in ranked]))
    return numbers, report


def _by_class(
    right: np.ndarray, support: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> tuple[dict[str, dict[str, float]], float]:
    """The report of each class, and macro-F1, from counts of its rows: rightly predicted, having it, and predicted."""
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(predicted + support, 1)
    report = {
        name: {
            "precision": float(precision[number]),
            "recall": float(recall[number]),
            "f1": float(f1[number]),
            "support": int(support[number]),
        }
        for number, name in enumerate(names)
    }
    occurs = (predicted + support) > 0
    return report, float(f1[occurs].mean()) if occurs.any() else 0.0


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the receiver operating characteristic: the chance that a positive row has a higher score than a
    negative one, ties counting half (Hanley & McNeil 1982).

    Args:
        scores: N numbers, higher where a row is more likely positive.
        labels: N times 0 or 1.

    Raises:
        ValueError: numbers of rows that differ, scores that are no numbers, other labels, or one kind of them alone.
    """
    scores, labels = _binary(scores, labels)
    return _auroc(scores, labels)


def auroc_interval(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of `auroc` by percentiles (Efron & Tibshirani 1993, section 13.3).

    Args:
        scores, labels: see `auroc`.
        groups: the group of each row, such as a patient; whole groups are drawn, because their rows are similar.
        level: share of the samples inside the interval.
        samples: number of bootstrap samples; one that lacks a kind of label is drawn again.
        seed: of the draws.

    Returns:
        lower and upper end.

    Raises:
        ValueError: as `auroc`; and if `groups` has another number of rows, or is one group alone.
    """
    scores, labels = _binary(scores, labels)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if groups.shape != labels.shape:
        raise ValueError(f"`groups` {groups.shape} must hold the group of each of the {len(labels)} rows.")
    names, members = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"all rows are of one group ({names[0]}); an interval needs at least two.")
    rows = [np.flatnonzero(members == number) for number in range(len(names))]
    generator = np.random.default_rng(seed)
    found: list[float] = []
    while len(found) < samples:
        drawn = np.concatenate([rows[number] for number in generator.integers(len(rows), size=len(rows))])
        if 0 < labels[drawn].sum() < len(drawn):
            found.append(_auroc(scores[drawn], labels[drawn]))
    lower, upper = np.quantile(found, ((1 - level) / 2, (1 + level) / 2))
    return float(lower), float(upper)


def _binary(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"`scores` {scores.shape} and `labels` {labels.shape} must be as many numbers.")
    if not np.isfinite(scores).all():
        raise ValueError("`scores` holds values that are not finite; a model that diverged cannot be ranked.")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"`labels` must be 0 or 1, and one is {labels[~np.isin(labels, (0, 1))][0]}.")
    if not 0 < labels.sum() < len(labels):
        raise ValueError(f"`labels` holds {int(labels.sum())} positive rows of {len(labels)}; it needs both kinds.")
    return scores, labels.astype(np.int64)


def _auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1, the mean of those that are equal
    positive = int(labels.sum())
    above = ranks[labels == 1].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(labels) - positive)))

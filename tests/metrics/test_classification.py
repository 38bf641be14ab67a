"""Scores of labels against values computed by hand."""

import numpy as np
import pytest

from fusion_captioner.metrics import auroc, auroc_interval, classification_scores, multi_label_scores

NAMES = ["calm", "glad", "sad"]
LABELS = [0, 0, 0, 0, 1, 1, 2, 2]
PREDICTIONS = [0, 0, 0, 1, 1, 0, 1, 2]


def test_scores_of_three_classes() -> None:
    scores, report = classification_scores(PREDICTIONS, LABELS, NAMES)
    assert report == {
        "calm": {"precision": 3 / 4, "recall": 3 / 4, "f1": 3 / 4, "support": 4},
        "glad": {"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "support": 2},
        "sad": {"precision": 1.0, "recall": 1 / 2, "f1": 2 / 3, "support": 2},
    }
    assert scores == pytest.approx({"accuracy": 5 / 8, "macro_f1": (3 / 4 + 2 / 5 + 2 / 3) / 3})


def test_classes_that_do_not_occur_count_for_nothing() -> None:
    scores, report = classification_scores([0, 1], [0, 0], [*NAMES, "angry"])
    assert report["angry"] == report["sad"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert scores == pytest.approx({"accuracy": 1 / 2, "macro_f1": (2 / 3 + 0) / 2})


def test_scores_of_several_labels_a_row() -> None:
    labels = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]
    logits = [[2.0, -1, -1], [1.0, 1, -1], [0.5, -2, -1], [-1.0, -1, -1]]
    scores, report = multi_label_scores(logits, labels, NAMES)
    # calm: two of three; glad: one of two found; sad: neither there nor thought to be
    assert report["calm"] == pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 4 / 5, "support": 2, "auroc": 1})
    # of the pairs (row with, row without) one is in order for row 1 twice, and for row 2 neither
    assert report["glad"] == pytest.approx(
        {"precision": 1, "recall": 1 / 2, "f1": 2 / 3, "support": 2, "auroc": 1 / 2}
    )
    assert report["sad"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    micro = 2 * 3 / (4 + 4)  # three decisions for a label are right, of four, and four labels are there
    expected = {"micro_f1": micro, "macro_f1": (4 / 5 + 2 / 3) / 2, "exact_match": 3 / 4, "auroc": 3 / 4}
    assert scores == pytest.approx(expected)
    scores, _ = multi_label_scores([[-1.0, -1, -1]], [[0, 0, 0]], NAMES)
    assert scores == {"micro_f1": 0.0, "macro_f1": 0.0, "exact_match": 1.0}


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[1.0, 2.0]], [[0, 1]], r"`logits` \(1, 2\) .* 3 `names`"),
        ([[1.0, 2.0, 0.0]], [[0, 1, 2]], "must be 0 or 1, and one is 2"),
        ([[1.0, np.nan, 0.0], [0.0, 1.0, 1.0]], [[0, 1, 1], [1, 0, 1]], "not finite"),
    ],
)
def test_several_labels_that_do_not_fit_are_refused(logits: list, labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_label_scores(logits, labels, NAMES)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 3 / 4),  # one of four pairs is in the wrong order
        ([1, 2, 3], [0, 1, 1], 1.0),
        ([3, 2, 1], [0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5, 0.9], [0, 1, 0, 1], (0.5 + 0.5 + 1 + 1) / 4),  # ties count half
    ],
)
def test_auroc_is_the_share_of_pairs_in_order(scores: list, labels: list, expected: float) -> None:
    assert auroc(scores, labels) == pytest.approx(expected)


def test_the_interval_holds_what_its_level_says() -> None:
    generator = np.random.default_rng(1)
    true_area, inside = 0.7602, 0  # of normal scores whose means are one standard deviation apart: Φ(1/√2)
    for seed in range(100):
        labels = np.arange(80) % 2
        lower, upper = auroc_interval(generator.normal(size=80) + labels, labels, samples=100, seed=seed)
        inside += lower <= true_area <= upper
    assert 0.87 <= inside / 100 < 1.0


def test_the_interval_is_the_same_every_time_and_narrows_with_more_rows() -> None:
    labels = np.arange(400) % 2
    scores = np.random.default_rng(0).normal(size=400) + labels
    interval = auroc_interval(scores, labels, samples=300)
    assert interval == auroc_interval(scores, labels, samples=300)
    assert interval[0] < auroc(scores, labels) < interval[1]
    wide = auroc_interval(scores[:50], labels[:50], samples=300)
    assert wide[1] - wide[0] > 2 * (interval[1] - interval[0])


def test_rows_of_one_group_are_drawn_together() -> None:
    labels = np.arange(40) % 2
    scores = np.random.default_rng(0).normal(size=40) + labels
    alone = auroc_interval(scores, labels, samples=500)
    groups = np.repeat(np.arange(40), 10)  # ten copies of each row tell no more than one
    copies = auroc_interval(np.repeat(scores, 10), np.repeat(labels, 10), groups, samples=500)
    assert copies == pytest.approx(alone)
    independent = auroc_interval(np.repeat(scores, 10), np.repeat(labels, 10), samples=500)
    assert independent[1] - independent[0] < 0.5 * (alone[1] - alone[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classification_scores([0, 1], [0], NAMES), r"`predictions` \(2,\) and `labels` \(1,\)"),
        (lambda: classification_scores([], [], NAMES), "at least one"),
        (lambda: classification_scores([0, 3], [0, 1], NAMES), "`predictions` holds class 3, and there are 3 `names`"),
        (lambda: classification_scores([0, 1], [0, -1], NAMES), "`labels` holds class -1"),
        (lambda: auroc([0.1], [0, 1]), r"`scores` \(1,\) and `labels` \(2,\)"),
        (lambda: auroc([0.1, 0.2], [1, 1]), "`labels` holds 2 positive rows of 2; it needs both kinds"),
        (lambda: auroc([0.1, 0.2], [0, 2]), "`labels` must be 0 or 1, and one is 2"),
        (lambda: auroc([0.1, np.nan], [0, 1]), "not finite"),
        (lambda: auroc_interval([1, 2], [0, 1], groups=[1]), r"`groups` \(1,\) must hold the group of each of the 2"),
        (lambda: auroc_interval([1, 2], [0, 1], groups=["p", "p"]), r"one group \(p\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)

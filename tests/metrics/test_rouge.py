import numpy as np
import pytest

from fusion_captioner.metrics.rouge import lcs_length, rouge_l


def dynamic_programme(first, second):
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


def test_lcs_equals_the_dynamic_programme():
    rng = np.random.default_rng(0)
    for _ in range(300):
        first, second = (list(rng.integers(4, size=rng.integers(0, 80))) for _ in range(2))
        assert lcs_length(first, second) == dynamic_programme(first, second)


def test_example_of_the_paper():
    # Lin 2004, section 3.1: precision and recall are equal, so the F-measure is the same for any β.
    reference = [["police killed the gunman"]]
    assert rouge_l(["police kill the gunman"], reference)[0] == pytest.approx(3 / 4)
    assert rouge_l(["the gunman kill police"], reference)[0] == pytest.approx(2 / 4)


def test_precision_and_recall_may_come_from_different_references():
    precision, recall = 3 / 4, 1
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert rouge_l(["a b c d"], [["a b", "a b c x y z"]])[0] == pytest.approx(expected)


def test_corpus_is_the_mean_and_empty_captions_score_0():
    corpus, images = rouge_l(["a b", "", "a"], [["a b"], ["a"], [""]])
    assert images == pytest.approx([1, 0, 0])
    assert corpus == pytest.approx(1 / 3)

import math

import numpy as np
import pytest

from fusion_captioner.metrics.bleu import bleu


def test_matches_are_clipped_to_the_most_in_one_reference():
    # The example of Papineni et al. 2002, section 2.1.
    corpus, _ = bleu(["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]])
    assert corpus[0] == pytest.approx(2 / 7)


def test_precision_and_brevity_penalty():
    corpus, _ = bleu(["a b c"], [["a b x c d e"]])
    penalty = math.exp(1 - 6 / 3)
    assert corpus[:2] == pytest.approx([penalty, penalty * math.sqrt(1 * 1 / 2)])
    assert corpus[2] < 1e-4  # no trigram in common


def test_of_two_equally_close_reference_lengths_the_shorter_counts():
    assert bleu(["a b c"], [["a b", "a b c d"]])[0][0] == pytest.approx(1)
    assert bleu(["a b c"], [["x", "a b c d"]])[0][0] == pytest.approx(math.exp(1 - 4 / 3))


def test_the_corpus_score_pools_the_images():
    corpus, images = bleu(["a a a a", "b"], [["a a a a"], ["c"]])
    assert images[:, 0] == pytest.approx([1, 0], abs=1e-6)
    assert corpus[0] == pytest.approx(4 / 5)


def test_a_reference_as_prediction_scores_1_and_an_empty_one_0():
    corpus, images = bleu(["a b c d e", ""], [["x y", "a b c d e"], ["a b"]])
    assert images[0] == pytest.approx(np.ones(4))
    assert images[1] == pytest.approx(np.zeros(4))
    assert (corpus < 1).all()

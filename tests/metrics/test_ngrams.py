from collections import Counter

import numpy as np
import pytest

from fusion_captioner.metrics.ngrams import count_ngrams, find_sorted


def counter_of(tokens):
    return Counter(tuple(tokens[i : i + n]) for n in range(1, 5) for i in range(len(tokens) - n + 1))


def test_counts_equal_those_of_a_counter():
    rng = np.random.default_rng(0)
    captions = [list("abcd"[i] for i in rng.integers(4, size=length)) for length in (0, 1, 2, 3, 4, 9, 30, 0)]
    ngrams = count_ngrams(captions)
    names = {}  # the hash of each n-gram, found by counting it alone
    for gram in set().union(*map(counter_of, captions)):
        alone = count_ngrams([gram])
        names[int(alone.hashes[alone.orders == len(gram) - 1][0])] = gram
    assert len(names) == len(set().union(*map(counter_of, captions)))
    for i, caption in enumerate(captions):
        mine = ngrams.captions == i
        counted = {names[int(h)]: c for h, c in zip(ngrams.hashes[mine], ngrams.counts[mine])}
        assert counted == counter_of(caption)
        assert [len(names[int(h)]) - 1 for h in ngrams.hashes[mine]] == list(ngrams.orders[mine])
    assert list(ngrams.lengths) == [0, 1, 2, 3, 4, 9, 30, 0]


def test_word_order_matters_and_ids_are_not_words():
    hashes = [count_ngrams([caption]).hashes for caption in (["a", "b"], ["b", "a"], [1, 2], ["1", "2"])]
    # Two words and both orders of them, then two unigrams and a bigram of each kind of token.
    assert len(set(np.concatenate(hashes))) == 4 + 3 + 3


def test_integers_of_numpy_are_integers():
    assert (count_ngrams([np.array([5, 6, 5])]).hashes == count_ngrams([[5, 6, 5]]).hashes).all()


def test_other_tokens_are_refused():
    with pytest.raises(ValueError, match=r"token 2\.5 is a float"):
        count_ngrams([[2.5]])


def test_nothing_is_found_in_an_empty_table():
    assert not find_sorted(np.array([], np.uint64), np.array([1, 2], np.uint64))[1].any()

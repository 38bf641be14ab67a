"""Counts of the n-grams of many captions at once, as numpy arrays: what BLEU and CIDEr-D are made of.

An n-gram is named by a 64-bit hash instead of by its words. That keeps tables of millions of n-grams in flat arrays,
lets a table be saved without its vocabulary, and needs no shared vocabulary between corpora. Two of `N` distinct
n-grams share a hash with probability `N² / 2⁶⁵`: 10⁻⁶ for the 5 million of all COCO training captions together.

E: distinct (caption, n-gram) pairs, over all captions and orders
"""

from collections.abc import Hashable, Sequence
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

import numpy as np

MAX_ORDER = 4  # BLEU and CIDEr-D both look at one to four words


class _TokenHashes(dict[Hashable, int]):
    """64-bit hash of each token seen, the same in every process (which Python's own `hash` of a string is not)."""

    def __missing__(self, token: Hashable) -> int:
        if isinstance(token, str):
            name = b"s" + token.encode("utf-8", "surrogatepass")
        elif isinstance(token, int | np.integer):
            name = b"i%d" % int(token)
        else:
            raise ValueError(f"token {token!r} is a {type(token).__name__}: tokens must be strings or integers.")
        value = self[token] = int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
        return value


_TOKEN_HASHES = _TokenHashes()


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): spreads every input bit over all 64 output bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class NgramCounts(NamedTuple):
    """Counts of n-grams in captions, sorted by caption and then by hash.

    Attributes:
        captions: (E,) int64, index of the caption.
        hashes: (E,) uint64, the n-gram.
        orders: (E,) int64, its number of words less one: 0…3.
        counts: (E,) int64, how often the caption has it.
        lengths: (number of captions,) int64, tokens of each caption.
    """

    captions: np.ndarray
    hashes: np.ndarray
    orders: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray


def count_ngrams(captions: Sequence[Sequence[Hashable]]) -> NgramCounts:
    """Counts the n-grams of one to four tokens in every caption.

    Args:
        captions: token sequences; tokens are strings or integers.

    Raises:
        ValueError: if a token is neither a string nor an integer.
    """
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    words = np.fromiter(
        map(_TOKEN_HASHES.__getitem__, chain.from_iterable(captions)), np.uint64, count=int(lengths.sum())
    )
    owner = np.repeat(np.arange(len(captions)), lengths)
    words_left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))

    starts = np.arange(len(words))
    grams = np.zeros(len(words), np.uint64)
    per_order = []
    for order in range(MAX_ORDER):
        fits = words_left[starts] > order
        starts, grams = starts[fits], grams[fits]
        # Multiplying before adding makes the hash depend on word order.
        grams = _mix(grams * np.uint64(0x9E3779B97F4A7C15) + words[starts + order])
        per_order.append((owner[starts], grams, np.full(len(starts), order)))
    caption, gram, order_of = (np.concatenate(parts) for parts in zip(*per_order))

    sorting = np.lexsort((gram, caption))
    caption, gram, order_of = caption[sorting], gram[sorting], order_of[sorting]
    is_first = np.ones(len(gram), bool)
    is_first[1:] = (gram[1:] != gram[:-1]) | (caption[1:] != caption[:-1])
    first = np.flatnonzero(is_first)
    count = np.diff(first, append=len(gram))
    return NgramCounts(caption[first], gram[first], order_of[first], count, lengths)


def find_sorted(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where `values` lie in the sorted array `table`.

    Returns:
        positions in `table`, and whether the value is really there (both of the length of `values`).
    """
    if len(table) == 0:
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    positions = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return positions, table[positions] == values

"""METEOR's alignment of two captions: which word of one stands for which word of the other.

Every word is matched at most once; more exact matches win, then fewer chunks (runs of matches adjacent in both
captions), then the smaller distance between matched positions (Denkowski & Lavie 2011, "Meteor 1.3"). Where repeated
words leave a choice, METEOR 1.5 searches with a beam of 40 and does not always find the best. This module takes the
same steps in the same order, so that it finds the same alignment, including where:

- stem matches count nothing in the comparison (half a match, rounded down at each step), so they are made only where
  that gives no more chunks, or where a word has no other match;
- the distance of a match is charged to the alternatives tried after it, not to the alignment that makes it.
"""

from collections import Counter
from operator import itemgetter
from typing import NamedTuple

BEAM_SIZE = 40

# An alignment's cost orders it as METEOR's comparison does: exact matches, then chunks, then distance.
_EXACT_MATCH = -(1 << 40)
_CHUNK = 1 << 20
_BY_COST = itemgetter(0)


class Match(NamedTuple):
    """A matched pair of words: position in the prediction, position in the reference, whether they are the same
    word."""

    prediction: int
    reference: int
    exact: bool


def align(
    prediction: list[str], reference: list[str], prediction_stems: list[str], reference_stems: list[str]
) -> list[Match]:
    """The matches between two captions by the modules "exact" and "stem", in the order of the reference's words.

    Args:
        prediction, reference: words.
        prediction_stems, reference_stems: their stems, in the same order.
    """
    # Identical captions are aligned by their words alone.
    stem_module = prediction != reference
    options: list[list[Match]] = []  # for every word of the reference, exact matches before stem matches
    for j, word in enumerate(reference):
        same_word = [Match(i, j, True) for i, other in enumerate(prediction) if other == word]
        same_stem = [
            Match(i, j, False)
            for i, stem in enumerate(prediction_stems)
            if stem == reference_stems[j] and prediction[i] != word
        ]
        options.append(same_word + same_stem if stem_module else same_word)

    rivals = Counter(match.prediction for matches in options for match in matches)
    fixed = [len(matches) == 1 and rivals[matches[0].prediction] == 1 for matches in options]
    if all(is_fixed or not matches for is_fixed, matches in zip(fixed, options)):
        return [matches[0] for matches in options if matches]
    return _search(options, fixed)


def count_chunks(matches: list[Match]) -> int:
    """Number of runs of matches that are adjacent, in the same order, in both captions."""
    chunks, previous = 0, None
    for match in matches:
        adjacent = (
            previous is not None
            and match.prediction == previous.prediction + 1
            and match.reference == previous.reference + 1
        )
        chunks += not adjacent
        previous = match
    return chunks


def _search(options: list[list[Match]], fixed: list[bool]) -> list[Match]:
    """Beam search over the words of the reference.

    A path is `(cost, end, used, matches)`: `end` is the word of the prediction after the open chunk (-1: none is
    open), `used` has a bit for each matched word of the prediction, `matches` is a chain `(last match, earlier
    chain)`. A chunk is paid for when it closes, as METEOR does.
    """
    paths: list[tuple] = [(0, -1, 0, None)]
    for matches, is_fixed in zip(options, fixed):
        paths.sort(key=_BY_COST)  # stable, as Java's sort: equal paths keep the order they were made in
        following: list[tuple] = []
        for cost, end, used, chain in paths[:BEAM_SIZE]:
            charged = 0  # see the module's second note
            for match in matches:
                i = match.prediction
                if used >> i & 1:
                    continue
                distance = abs(match.reference - i)
                new_cost = (
                    cost + charged + (_CHUNK if end not in (-1, i) else 0) + (_EXACT_MATCH if match.exact else 0)
                )
                if is_fixed:
                    new_cost += distance
                following.append((new_cost, i + 1, used | 1 << i, (match, chain)))
                charged += distance
            if not is_fixed:
                following.append((cost + charged + (_CHUNK if end != -1 else 0), -1, used, chain))
        paths = following
    # METEOR sorts before it closes the last chunks as well, which decides between paths that end equal.
    paths.sort(key=_BY_COST)
    closed = [(cost + (_CHUNK if end != -1 else 0), chain) for cost, end, _, chain in paths[:BEAM_SIZE]]
    chain = min(closed, key=_BY_COST)[1]
    best = []
    while chain is not None:
        match, chain = chain
        best.append(match)
    return best[::-1]

"""METEOR-exact-stem: METEOR 1.5 (Denkowski & Lavie 2014, "Meteor Universal: Language Specific Translation Evaluation
for Any Target Language") with its English parameters and, of its four matching modules, the two that need no data: the
same word, and the same Snowball stem. It equals `java -jar meteor-1.5.jar - - -stdio -l en -norm -m "exact stem"`.

It is lower than METEOR itself, which also matches synonyms and paraphrases: never compare one with the other.

Alignment, that is which word of one caption stands for which word of the other: every word is matched at most once;
more exact matches win, then fewer chunks (runs of matches adjacent in both captions), then the smaller distance
between matched positions (Denkowski & Lavie 2011, "Meteor 1.3"). Where repeated words leave a choice, METEOR 1.5
searches with a beam of 40 and does not always find the best. This module takes the same steps in the same order, so
that it finds the same alignment, including where:

- stem matches count nothing in the comparison (half a match, rounded down at each step), so they are made only where
  that gives no more chunks, or where a word has no other match;
- the distance of a match is charged to the alternatives tried after it, not to the alignment that makes it.

Normalisation follows the METEOR and Moses tokenizers as far as they touch text that is tokenized already. Only Moses'
list of abbreviations is left out: of its entries `v.`, `vs.` and `rev.` can meet a lower-cased caption, at its end.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from snowballstemmer.english_stemmer import EnglishStemmer

from fusion_captioner.metrics.tokenization import Caption, Tokenizer, tokenize_caption, tokenize_corpus

# METEOR 1.5's parameters for English (its ranking task).
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
EXACT_WEIGHT, STEM_WEIGHT = 1.0, 0.6

# Snowball changed its English stemmer in 3.0 (emergency, evening, skis, …), METEOR has an older one that 2.2 agrees
# with.
STEMMER_VERSION = version("snowballstemmer")

BEAM_SIZE = 40

# An alignment's cost orders it as METEOR's comparison does: exact matches, then chunks, then distance.
_EXACT_MATCH = -(1 << 40)
_CHUNK = 1 << 20
_BY_COST = itemgetter(0)

# Letters to METEOR are Latin and Cyrillic; every other letter is a symbol that stands alone.
_LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"

_RULES = [
    (re.compile(pattern, re.ASCII), replacement)
    for pattern, replacement in [
        (rf"([^0-9{_LETTER}\s.'`,\-‘’])", r" \1 "),  # symbols stand alone
        (r"\.{2,}", r" \g<0> "),  # so does an ellipsis
        (r"[`‘’]", "'"),  # one kind of quotation mark and of dash
        (r"[“”]|''", ' " '),
        (r"–|--", "-"),
        (rf"([0-9{_LETTER}.])-([0-9{_LETTER}])", r"\1 \2"),  # black-and-white → black and white
        (rf"([^{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),  # apostrophes: kids' → kids ', dog's → dog 's
        (rf"([^0-9{_LETTER}])'([{_LETTER}])", r"\1 ' \2"),
        (rf"([{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),
        (rf"([{_LETTER}])'([{_LETTER}])", r"\1 '\2"),
        (r"([0-9])'(s)", r"\1 '\2"),  # 1990's
    ]
]
_PLAIN = re.compile(r"[0-9a-z ]*")

# METEOR 1.5's English function words (`function/english.words` in its jar, Carnegie Mellon University, LGPL): the
# words and marks with a relative frequency above 10⁻³ in a large corpus (Denkowski & Lavie 2014).
FUNCTION_WORDS = frozenset(
    """
    the , . to of and a in that for " is on 's it with was as said at he by be from have has are his but an this
    not i will ’ they ) -rrb- ( -lrb- who their had we which were been more or s its would about new one after
    you : also up when there than $ all out her people she year two - can if last first “ over other ” into some
    what so -- no time years could ? 't — '
    """.split()  # noqa: SIM905
)


def meteor_exact_stem(
    predictions: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    tokenizer: Tokenizer | None = tokenize_caption,
) -> tuple[float, np.ndarray]:
    """METEOR with the modules "exact" and "stem"; of several references the one that gives the highest score counts.

    Args:
        predictions: one caption per image: strings, or sequences of words where `tokenizer` is `None`.
        references: for each image its reference captions.
        tokenizer: callable from string to words, or `None`. METEOR splits its words further, at hyphens and
            apostrophes.

    Returns:
        the score of the corpus (computed from the counts summed over the images, as METEOR does: not a mean) and the
        scores of the images, (images,) float64.

    Raises:
        ValueError: if predictions and references do not fit, are empty or of the wrong type.
    """
    prediction_tokens, reference_tokens = tokenize_corpus(predictions, references, tokenizer)
    counts = []
    for prediction, captions in zip(prediction_tokens, reference_tokens):
        words = _Words(prediction)
        counts.append([_count(words, _Words(caption)) for caption in captions])

    scores = _score(np.array(list(chain.from_iterable(counts))))  # of all references in one row
    best, per_image, first = [], [], 0
    for image in counts:
        index = int(scores[first : first + len(image)].argmax())
        best.append(image[index])
        per_image.append(scores[first + index])
        first += len(image)
    return float(_score(np.sum(best, axis=0))), np.array(per_image)


@lru_cache(maxsize=1 << 17)
def _stem(word: str) -> str:
    return EnglishStemmer().stemWord(word)  # a stemmer holds the word it works on, so threads cannot share one


class _Words:
    """The words of a caption, their stems, their weights, and the sum of the weights.

    A content word weighs δ, a function word 1 − δ.
    """

    def __init__(self, tokens: Sequence[Hashable]):
        self.words = normalize_tokens(tokens)
        self.stems = [_stem(word) for word in self.words]
        self.weights = [1 - DELTA if word in FUNCTION_WORDS else DELTA for word in self.words]
        self.total = sum(self.weights)


def _count(prediction: _Words, reference: _Words) -> tuple[float, float, float, float, int, int]:
    """What the score is made of: weighted matches and weighted length of prediction and reference, matches, chunks."""
    matches = align(prediction.words, reference.words, prediction.stems, reference.stems)
    in_prediction = in_reference = 0.0
    for i, j, exact in matches:
        module_weight = EXACT_WEIGHT if exact else STEM_WEIGHT
        in_prediction += module_weight * prediction.weights[i]
        in_reference += module_weight * reference.weights[j]
    chunks = count_chunks(matches)
    if chunks == 1 and len(matches) == len(prediction.words) == len(reference.words):
        chunks = 0  # a whole match is not fragmented
    return in_prediction, prediction.total, in_reference, reference.total, len(matches), chunks


def _score(counts: np.ndarray) -> np.ndarray:
    """METEOR from counts (…, 6) as `_count` returns them; without a match it is 0.

    P, R = weighted matches / weighted length, F = P·R / (α·P + (1 − α)·R), score = F · (1 − γ·(chunks / matches)^β).
    """
    in_prediction, prediction_total, in_reference, reference_total, matches, chunks = np.moveaxis(counts, -1, 0)
    # Without a match the numerators are 0, so that any denominator will do.
    precision = in_prediction / np.where(matches, prediction_total, 1)
    recall = in_reference / np.where(matches, reference_total, 1)
    mean = precision * recall / np.where(matches, ALPHA * precision + (1 - ALPHA) * recall, 1)
    penalty = GAMMA * (chunks / np.where(matches, matches, 1)) ** BETA
    return mean * (1 - penalty)


def normalize_tokens(tokens: Iterable[Hashable]) -> list[str]:
    """Splits and lower-cases the tokens of a caption as METEOR does before it matches words.

    Raises:
        ValueError: if a token is not a string: METEOR looks at letters.
    """
    text = " ".join(_as_word(token) for token in tokens)
    if _PLAIN.fullmatch(text):  # 98 of 100 captions
        return text.split()
    text = f" {text} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    words = text.split()
    return [
        part.lower() for word, following in zip(words, [*words[1:], ""]) for part in _split_full_stop(word, following)
    ]


def _as_word(token: Hashable) -> str:
    if not isinstance(token, str):
        raise ValueError(f"token {token!r} is a {type(token).__name__}: METEOR needs words, not token ids.")
    return token


def _split_full_stop(word: str, following: str) -> list[str]:
    """u.s. → us; st. stays before a lower-case word, as an abbreviation does, and is split before anything else."""
    stem = word[:-1]
    if not word.endswith(".") or not word.strip("."):
        return [word]
    if "." in stem and re.search(f"[{_LETTER}]", stem):
        return [word.replace(".", "")]
    return [word] if re.match("[a-z]", following) else [stem, "."]


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
    open), `used` has a bit for each matched word of the prediction, `matches` is a trail `(last match, earlier
    trail)`. A chunk is paid for when it closes, as METEOR does.
    """
    paths: list[tuple] = [(0, -1, 0, None)]
    for matches, is_fixed in zip(options, fixed):
        paths.sort(key=_BY_COST)  # stable, as Java's sort: equal paths keep the order they were made in
        following: list[tuple] = []
        for cost, end, used, trail in paths[:BEAM_SIZE]:
            charged = 0  # see the module's second note on alignment
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
                following.append((new_cost, i + 1, used | 1 << i, (match, trail)))
                charged += distance
            if not is_fixed:
                following.append((cost + charged + (_CHUNK if end != -1 else 0), -1, used, trail))
        paths = following
    # METEOR sorts before it closes the last chunks as well, which decides between paths that end equal.
    paths.sort(key=_BY_COST)
    closed = [(cost + (_CHUNK if end != -1 else 0), trail) for cost, end, _, trail in paths[:BEAM_SIZE]]
    trail = min(closed, key=_BY_COST)[1]
    best = []
    while trail is not None:
        match, trail = trail
        best.append(match)
    return best[::-1]

"""METEOR-exact-stem: METEOR 1.5 (Denkowski & Lavie 2014, "Meteor Universal: Language Specific Translation Evaluation
for Any Target Language") with its English parameters and, of its four matching modules, the two that need no data: the
same word, and the same Snowball stem. It equals `java -jar meteor-1.5.jar - - -stdio -l en -norm -m "exact stem"`.

It is lower than METEOR itself, which also matches synonyms and paraphrases: never compare one with the other.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import chain

import numpy as np
from snowballstemmer.english_stemmer import EnglishStemmer

from fusion_captioner.metrics.meteor_alignment import align, count_chunks
from fusion_captioner.metrics.meteor_normalization import FUNCTION_WORDS, normalize_tokens
from fusion_captioner.metrics.tokenization import Caption, Tokenizer, tokenize_caption, tokenize_corpus

# METEOR 1.5's parameters for English (its ranking task).
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
EXACT_WEIGHT, STEM_WEIGHT = 1.0, 0.6

# Snowball changed its English stemmer in 3.0 (emergency, evening, skis, …), METEOR has an older one that 2.2 agrees
# with.
STEMMER_VERSION = version("snowballstemmer")


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

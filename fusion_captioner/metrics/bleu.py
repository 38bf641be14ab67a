"""Corpus BLEU-1…4 (Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation").

As coco-caption computes it: the closest reference length (the shorter of two equally close), and constants added to
matches and guesses in place of smoothing, so that a caption without any 4-gram match scores next to nothing.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from fusion_captioner.metrics.ngrams import MAX_ORDER, count_ngrams, find_sorted
from fusion_captioner.metrics.tokenization import Caption, Tokenizer, Tokens, tokenize_caption, tokenize_corpus

# coco-caption's values: without a guess the precision is TINY / SMALL, and no division by zero.
_TINY = 1e-15
_SMALL = 1e-9


def bleu(
    predictions: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    tokenizer: Tokenizer | None = tokenize_caption,
) -> tuple[np.ndarray, np.ndarray]:
    """BLEU-1, -2, -3 and -4.

    Args:
        predictions: one caption per image: strings, or token sequences where `tokenizer` is `None`.
        references: for each image its reference captions.
        tokenizer: callable from string to tokens, or `None`.

    Returns:
        the scores of the corpus, (4,) float64 (pooled over the images, not a mean), and of each image, (images, 4).

    Raises:
        ValueError: if predictions and references do not fit, are empty or of the wrong type.
    """
    correct, guessed, lengths, closest = _matches(*tokenize_corpus(predictions, references, tokenizer))
    corpus = _score(correct.sum(axis=0), guessed.sum(axis=0), lengths.sum(), closest.sum())
    return corpus, _score(correct, guessed, lengths, closest)


def sentence_bleu(
    predictions: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    tokenizer: Tokenizer | None = None,
) -> np.ndarray:
    """BLEU-4 of single captions, with one added to matches and guesses of two words and more (Lin & Och 2004,
    "ORANGE", section 4): a caption without a common 4-gram still scores by its shorter ones, as a reward must.

    Args:
        predictions, references, tokenizer: as for `bleu`, but by default captions are tokens already.

    Returns:
        (images,) float64.

    Raises:
        ValueError: as `bleu`.
    """
    correct, guessed, lengths, closest = _matches(*tokenize_corpus(predictions, references, tokenizer))
    correct[:, 1:] += 1
    guessed[:, 1:] += 1
    return _score(correct, guessed, lengths, closest)[:, -1]


def _matches(
    prediction_tokens: list[Tokens], reference_tokens: list[list[Tokens]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Clipped matches and guesses by order, (images, 4) each, and lengths and closest reference lengths, (images,)."""
    predicted = count_ngrams(prediction_tokens)
    referenced = count_ngrams(list(chain.from_iterable(reference_tokens)))
    num_references = np.array([len(captions) for captions in reference_tokens])
    image_of_reference = np.repeat(np.arange(len(num_references)), num_references)

    # The most often that any single reference of the image has the n-gram, by one sorted key for (image, n-gram).
    hashes, gram = np.unique(referenced.hashes, return_inverse=True)
    key = image_of_reference[referenced.captions] * len(hashes) + gram
    keys, entry = np.unique(key, return_inverse=True)
    most = np.zeros(len(keys), np.int64)
    np.maximum.at(most, entry, referenced.counts)

    # Clipped matches ("modified n-gram precision", section 2.1).
    gram, known = find_sorted(hashes, predicted.hashes)
    entry, shared = find_sorted(keys, predicted.captions * len(hashes) + gram)
    shared &= known
    correct = np.bincount(
        predicted.captions[shared] * MAX_ORDER + predicted.orders[shared],
        np.minimum(predicted.counts[shared], most[entry[shared]]),
        minlength=len(prediction_tokens) * MAX_ORDER,
    ).reshape(-1, MAX_ORDER)
    guessed = np.maximum(predicted.lengths[:, None] - np.arange(MAX_ORDER), 0)  # (images, 4)

    # Closest reference length: sorting by length first lets the shorter one win a tie.
    distance = np.abs(referenced.lengths - predicted.lengths[image_of_reference])
    ranking = np.lexsort((referenced.lengths, distance, image_of_reference))
    closest = referenced.lengths[ranking[np.cumsum(num_references) - num_references]]
    return correct, guessed, predicted.lengths, closest


def _score(correct: np.ndarray, guessed: np.ndarray, length: np.ndarray, reference_length: np.ndarray) -> np.ndarray:
    """Geometric means of the precisions up to each order, times the brevity penalty (section 2.3); (…, 4)."""
    precisions = (correct + _TINY) / (guessed + _SMALL)
    means = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, MAX_ORDER + 1))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = np.exp(np.minimum(0, 1 - 1 / ratio))
    return means * penalty[..., None]

"""ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.1).

As coco-caption computes it: β = 1.2, and precision and recall are each the highest over the references, which need
not be the same reference for both.
"""

from collections.abc import Sequence

import numpy as np

from fusion_captioner.metrics.tokenization import Caption, Tokenizer, Tokens, tokenize_caption, tokenize_corpus

BETA = 1.2


def lcs_length(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence of two token sequences.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): a column of the dynamic programme is
    one integer, a zero bit where the length grows, so that a column takes four operations whatever its height.
    """
    occurrences: dict = {}
    for position, token in enumerate(first):
        occurrences[token] = occurrences.get(token, 0) | 1 << position
    everywhere = (1 << len(first)) - 1
    column = everywhere
    for token in second:
        matches = column & occurrences.get(token, 0)
        column = ((column + matches) | (column - matches)) & everywhere
    return len(first) - column.bit_count()


def rouge_l(
    predictions: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    tokenizer: Tokenizer | None = tokenize_caption,
) -> tuple[float, np.ndarray]:
    """ROUGE-L F-measure.

    Args:
        predictions: one caption per image: strings, or token sequences where `tokenizer` is `None`.
        references: for each image its reference captions.
        tokenizer: callable from string to tokens, or `None`.

    Returns:
        the corpus score (the mean) and the scores of the images, (images,) float64.

    Raises:
        ValueError: if predictions and references do not fit, are empty or of the wrong type.
    """
    per_image = np.array([_score(*image) for image in zip(*tokenize_corpus(predictions, references, tokenizer))])
    return float(per_image.mean()), per_image


def _score(prediction: Tokens, references: list[Tokens]) -> float:
    common = [(lcs_length(prediction, reference), len(reference)) for reference in references]
    longest = max(length for length, _ in common)
    if longest == 0:  # also where the prediction is empty
        return 0.0
    precision = longest / len(prediction)
    recall = max(length / total for length, total in common if total)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)  # equation 4

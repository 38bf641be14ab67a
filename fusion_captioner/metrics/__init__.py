"""Metrics of captions, answers, retrieval and labels without Java, PyTorch or downloads. Each takes predictions and
references and says what it is."""

from fusion_captioner.metrics.answers import answer_scores
from fusion_captioner.metrics.caption_scores import score_captions
from fusion_captioner.metrics.cider import CiderD, DocumentFrequencies
from fusion_captioner.metrics.classification import (
    auroc,
    auroc_interval,
    classification_scores,
    multi_label_scores,
)
from fusion_captioner.metrics.diversity import caption_diversity
from fusion_captioner.metrics.regression import regression_scores
from fusion_captioner.metrics.retrieval import retrieval_recall
from fusion_captioner.metrics.tokenization import TOKENIZERS, fold_caption, tokenize_caption

__all__ = [
    "TOKENIZERS",
    "CiderD",
    "DocumentFrequencies",
    "answer_scores",
    "auroc",
    "auroc_interval",
    "caption_diversity",
    "classification_scores",
    "fold_caption",
    "multi_label_scores",
    "regression_scores",
    "retrieval_recall",
    "score_captions",
    "tokenize_caption",
]

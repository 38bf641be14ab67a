"""CIDEr-D, BLEU, ROUGE-L and METEOR of captions at once, for `evaluate.load("…/evaluate_modules/caption_scores")`."""

import evaluate

from fusion_captioner.metrics.caption_scores import DEFAULT_METRICS, score_captions
from fusion_captioner.metrics.evaluate_modules import caption_metric
from fusion_captioner.metrics.evaluate_modules.bleu.bleu import _CITATION as BLEU
from fusion_captioner.metrics.evaluate_modules.cider.cider import _CITATION as CIDER
from fusion_captioner.metrics.evaluate_modules.meteor_exact_stem.meteor_exact_stem import _CITATION as METEOR
from fusion_captioner.metrics.evaluate_modules.rouge_l.rouge_l import _CITATION as ROUGE

_DESCRIPTION = """\
The scores that captioning papers report, as coco-caption computes them, with a signature of how they were computed.
"""

_CITATION = CIDER + BLEU + ROUGE + METEOR

_INPUTS = """\
Args:
    predictions: list of captions, one per image.
    references: list with the list of reference captions of each image.
    metrics: which of "CIDEr", "BLEU", "ROUGE-L", "METEOR-exact-stem" and "METEOR" (needs Java).
    document_frequencies: a `fusion_captioner.metrics.cider.DocumentFrequencies` of another corpus; by default the
        references' own.
    tokenizer: name of the tokenizer: "auto" (every language), "words", "characters", "whitespace" or "jieba".
Returns:
    dict with the scores of the corpus under the names that papers use, and "signature".
"""


class CaptionScores(evaluate.Metric):
    def _info(self):
        return caption_metric(_DESCRIPTION, _CITATION, _INPUTS)

    def _compute(self, predictions, references, metrics=DEFAULT_METRICS, document_frequencies=None, tokenizer="auto"):
        return score_captions(
            predictions, references, metrics=metrics, document_frequencies=document_frequencies, tokenizer=tokenizer
        )

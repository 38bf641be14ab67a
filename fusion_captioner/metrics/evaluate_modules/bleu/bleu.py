"""Corpus BLEU-1 to BLEU-4 of captions, for `evaluate.load("…/evaluate_modules/bleu")`."""

import evaluate

from fusion_captioner.metrics.bleu import bleu
from fusion_captioner.metrics.evaluate_modules import caption_metric
from fusion_captioner.metrics.tokenization import find_tokenizer

_DESCRIPTION = """\
Clipped n-gram precision with a brevity penalty, pooled over the corpus, as coco-caption computes it.
"""

_CITATION = """\
@inproceedings{papineni2002bleu,
  title={{BLEU}: a method for automatic evaluation of machine translation},
  author={Papineni, Kishore and Roukos, Salim and Ward, Todd and Zhu, Wei-Jing},
  booktitle={ACL},
  year={2002}
}
"""

_INPUTS = """\
Args:
    predictions: list of captions, one per image.
    references: list with the list of reference captions of each image.
    tokenizer: name of the tokenizer: "auto" (every language), "words", "characters", "whitespace" or "jieba".
Returns:
    dict with the scores of the corpus under "BLEU-1" to "BLEU-4".
"""


class Bleu(evaluate.Metric):
    def _info(self):
        return caption_metric(_DESCRIPTION, _CITATION, _INPUTS)

    def _compute(self, predictions, references, tokenizer="auto"):
        return {
            f"BLEU-{order}": float(score)
            for order, score in enumerate(bleu(predictions, references, find_tokenizer(tokenizer))[0], start=1)
        }

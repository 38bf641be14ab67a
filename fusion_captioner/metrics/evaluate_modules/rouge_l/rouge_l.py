"""ROUGE-L of captions, for `evaluate.load("…/evaluate_modules/rouge_l")`."""

import evaluate

from fusion_captioner.metrics.evaluate_modules import caption_metric
from fusion_captioner.metrics.rouge import rouge_l
from fusion_captioner.metrics.tokenization import find_tokenizer

_DESCRIPTION = """\
Longest common subsequence with the references, F-measure with beta = 1.2, as coco-caption computes it.
"""

_CITATION = """\
@inproceedings{lin2004rouge,
  title={{ROUGE}: A package for automatic evaluation of summaries},
  author={Lin, Chin-Yew},
  booktitle={Text Summarization Branches Out},
  year={2004}
}
"""

_INPUTS = """\
Args:
    predictions: list of captions, one per image.
    references: list with the list of reference captions of each image.
    tokenizer: name of the tokenizer: "auto" (every language), "words", "characters", "whitespace" or "jieba".
Returns:
    dict with the score of the corpus under "ROUGE-L".
"""


class RougeL(evaluate.Metric):
    def _info(self):
        return caption_metric(_DESCRIPTION, _CITATION, _INPUTS)

    def _compute(self, predictions, references, tokenizer="auto"):
        return {"ROUGE-L": rouge_l(predictions, references, find_tokenizer(tokenizer))[0]}

"""CIDEr-D of captions, for `evaluate.load("…/evaluate_modules/cider")`."""

import evaluate

from fusion_captioner.metrics.cider import cider_d
from fusion_captioner.metrics.evaluate_modules import caption_metric
from fusion_captioner.metrics.tokenization import find_tokenizer

_DESCRIPTION = """\
Consensus of a caption with its image's references: tf-idf weighted n-grams, as coco-caption's "CIDEr".
"""

_CITATION = """\
@inproceedings{vedantam2015cider,
  title={{CIDEr}: Consensus-based image description evaluation},
  author={Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi},
  booktitle={CVPR},
  year={2015}
}
"""

_INPUTS = """\
Args:
    predictions: list of captions, one per image.
    references: list with the list of reference captions of each image.
    document_frequencies: a `fusion_captioner.metrics.cider.DocumentFrequencies` of another corpus; by default the
        references' own.
    tokenizer: name of the tokenizer: "auto" (every language), "words", "characters", "whitespace" or "jieba".
Returns:
    dict with the score of the corpus under "CIDEr".
"""


class Cider(evaluate.Metric):
    def _info(self):
        return caption_metric(_DESCRIPTION, _CITATION, _INPUTS)

    def _compute(self, predictions, references, document_frequencies=None, tokenizer="auto"):
        return {"CIDEr": cider_d(predictions, references, document_frequencies, find_tokenizer(tokenizer))[0]}

"""METEOR 1.5 of captions by exact and stem matches, for `evaluate.load("…/evaluate_modules/meteor_exact_stem")`."""

import evaluate

from fusion_captioner.metrics.evaluate_modules import caption_metric
from fusion_captioner.metrics.meteor import meteor_exact_stem
from fusion_captioner.metrics.tokenization import find_tokenizer

_DESCRIPTION = """\
METEOR 1.5 with its English parameters and its modules "exact" and "stem": lower than METEOR with all modules.
"""

_CITATION = """\
@inproceedings{denkowski2014meteor,
  title={Meteor Universal: Language specific translation evaluation for any target language},
  author={Denkowski, Michael and Lavie, Alon},
  booktitle={Workshop on Statistical Machine Translation},
  year={2014}
}
"""

_INPUTS = """\
Args:
    predictions: list of captions, one per image.
    references: list with the list of reference captions of each image.
    tokenizer: name of the tokenizer: "auto" (every language), "words", "characters", "whitespace" or "jieba".
Returns:
    dict with the score of the corpus under "METEOR-exact-stem".
"""


class MeteorExactStem(evaluate.Metric):
    def _info(self):
        return caption_metric(_DESCRIPTION, _CITATION, _INPUTS)

    def _compute(self, predictions, references, tokenizer="auto"):
        return {"METEOR-exact-stem": meteor_exact_stem(predictions, references, find_tokenizer(tokenizer))[0]}

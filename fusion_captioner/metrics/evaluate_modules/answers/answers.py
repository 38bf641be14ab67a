"""Exact match and token-F1 of answers, for `evaluate.load("…/evaluate_modules/answers")`."""

import datasets
import evaluate

from fusion_captioner.metrics.answers import answer_scores

_DESCRIPTION = """\
Share of answers that are right word for word, and F1 of their words, in lower case, without punctuation and articles.
"""

_CITATION = """\
@inproceedings{antol2015vqa,
  title={{VQA}: Visual Question Answering},
  author={Antol, Stanislaw and Agrawal, Aishwarya and Lu, Jiasen and Mitchell, Margaret and Batra, Dhruv and Zitnick,
  C. Lawrence and Parikh, Devi},
  booktitle={International Conference on Computer Vision},
  year={2015}
}
"""

_INPUTS = """\
Args:
    predictions: list of answers, one a question.
    references: list of right answers, one a question.
    kinds: list with the kind of each question, such as "closed" or "open", to be scored apart, too.
Returns:
    dict with "exact_match" and "token_f1", and of each kind "closed_exact_match", ..., from 0 to 1.
"""


class Answers(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, kinds=None):
        return answer_scores(predictions, references, kinds)

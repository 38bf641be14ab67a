"""CIDEr-D, BLEU, ROUGE-L and METEOR of captions at once, for `evaluate.load("…/evaluate_modules/caption_scores")`."""

import datasets
import evaluate

from fusion_captioner.metrics.caption_scores import DEFAULT_METRICS, score_captions

_DESCRIPTION = """\
The scores that captioning papers report, as coco-caption computes them, with a signature of how they were computed.
"""

_CITATION = """\
@inproceedings{vedantam2015cider,
  title={{CIDEr}: Consensus-based image description evaluation},
  author={Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi},
  booktitle={CVPR},
  year={2015}
}
@inproceedings{papineni2002bleu,
  title={{BLEU}: a method for automatic evaluation of machine translation},
  author={Papineni, Kishore and Roukos, Salim and Ward, Todd and Zhu, Wei-Jing},
  booktitle={ACL},
  year={2002}
}
@inproceedings{lin2004rouge,
  title={{ROUGE}: A package for automatic evaluation of summaries},
  author={Lin, Chin-Yew},
  booktitle={Text Summarization Branches Out},
  year={2004}
}
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
    metrics: which of "CIDEr", "BLEU", "ROUGE-L", "METEOR-exact-stem" and "METEOR" (needs Java).
    document_frequencies: a `fusion_captioner.metrics.cider.DocumentFrequencies` of another corpus; by default the
        references' own.
    tokenizer: name of the tokenizer: "auto" (every language), "words", "characters", "whitespace" or "jieba".
Returns:
    dict with the scores of the corpus under the names that papers use, and "signature".
"""


class CaptionScores(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references, metrics=DEFAULT_METRICS, document_frequencies=None, tokenizer="auto"):
        return score_captions(
            predictions, references, metrics=metrics, document_frequencies=document_frequencies, tokenizer=tokenizer
        )

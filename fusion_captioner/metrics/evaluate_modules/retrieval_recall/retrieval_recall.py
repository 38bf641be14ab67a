"""Recall at K of image-text retrieval, for `evaluate.load("…/evaluate_modules/retrieval_recall")`."""

import datasets
import evaluate
import numpy as np

from fusion_captioner.metrics.retrieval import RANKS, retrieval_recall

_DESCRIPTION = """\
Share of images with one of their texts among the best K, and of texts with their image: recall at 1, 5 and 10.
"""

_CITATION = """\
@article{hodosh2013framing,
  title={Framing image description as a ranking task: Data, models and evaluation metrics},
  author={Hodosh, Micah and Young, Peter and Hockenmaier, Julia},
  journal={Journal of Artificial Intelligence Research},
  volume={47},
  pages={853--899},
  year={2013}
}
"""

_INPUTS = """\
Args:
    predictions: for each image the list of its similarities to all texts.
    references: for each image the list of the numbers of its own texts.
    fold_size: images to search among; by default all, 1000 for the mean over folds of COCO's 1k protocol.
    ranks: values of K.
Returns:
    dict with "image_to_text_R@1", "text_to_image_R@1", ... from 0 to 1.
"""


class RetrievalRecall(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references, fold_size=None, ranks=RANKS):
        similarity = np.array(predictions, dtype=np.float64)
        text_images = np.full(similarity.shape[-1], -1)
        for image, texts in enumerate(references):
            text_images[texts] = image
        return retrieval_recall(similarity, text_images, fold_size, ranks)

"""`ModalityTrainer`: training of the heads that do with any modality, and evaluation of each setting in one pass.

N: rows of a split, B: of a batch, C: labels or choices, S: settings
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from fusion_captioner.training.head_trainer import HeadTrainer

IMAGE_INPUTS = ("pixel_values", "image_hidden_states")
TEXT_INPUTS = ("input_ids", "attention_mask")
# Inputs that evaluation hides, by the setting's name, which stands before its scores; first everything is shown.
IMAGE_AND_TEXT_SETTINGS: dict[str, Sequence[str]] = {"": (), "image_only": TEXT_INPUTS, "text_only": IMAGE_INPUTS}
QUESTION_SETTINGS: dict[str, Sequence[str]] = {"": (), "question_only": IMAGE_INPUTS}
ONE_SETTING: dict[str, Sequence[str]] = {"": ()}


@dataclass(frozen=True)
class Evaluated:
    """
    What an evaluation gave.

    Args:
        scores: setting → log-probabilities `(N, C)`; where a row has several labels or a value, what the model gave.
        labels: right class numbers or values, `(N,)`, or several labels `(N, C)`.
        rows: numbers of the rows in their split, `(N,)`.
    """

    scores: dict[str, np.ndarray]
    labels: np.ndarray
    rows: np.ndarray


class ModalityTrainer(HeadTrainer):
    """
    [`HeadTrainer`] for classification and multiple choice.

    Args:
        settings: a key or more of those above.
        score: from `scores` and `labels` of [`Evaluated`] to named scores, for every setting.
        problem_type: of the model, as transformers has it; that of choices is that of single labels.
        The rest as for `HeadTrainer`.
    """

    def __init__(
        self,
        *arguments: Any,
        settings: Mapping[str, Sequence[str]],
        score: Callable[[np.ndarray, np.ndarray], dict[str, float]],
        problem_type: str = "single_label_classification",
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, compute_metrics=self._score, **keywords)
        self.settings = settings
        self.score = score
        self.problem_type = problem_type
        self.evaluated = Evaluated({}, np.empty(0, np.int64), np.empty(0, np.int64))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name != "rows"}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss where everything is shown; scores `(B, C, S)`; and of each row its labels and, last, its number."""
        inputs = self._prepare_inputs(inputs)
        rows = inputs.pop("rows")
        scores, losses = [], []
        with torch.inference_mode(), self.compute_loss_context_manager():
            for hidden in self.settings.values():
                outputs = model(**{name: value for name, value in inputs.items() if name not in hidden})
                losses.append(outputs.loss)
                logits = outputs.logits.float()
                # as probabilities: where questions have fewer choices than others, batches are padded by -100, which
                # must be less than what the best choice has
                one_of_them = self.problem_type == "single_label_classification"
                scores.append(logits.log_softmax(dim=1) if one_of_them else logits)
        labels = inputs["labels"].view(len(rows), -1)
        return losses[0], torch.stack(scores, dim=-1), torch.cat((labels, rows.unsqueeze(1).to(labels.dtype)), dim=1)

    def evaluation_loop(self, *arguments, **keywords):
        with self.averaged_weights():
            return super().evaluation_loop(*arguments, **keywords)

    def _score(self, prediction: EvalPrediction) -> dict[str, float]:
        scores, found = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        by_setting = {setting: scores[..., number] for number, setting in enumerate(self.settings)}
        labels = found[:, :-1] if self.problem_type == "multi_label_classification" else found[:, 0]
        self.evaluated = Evaluated(by_setting, labels, found[:, -1].astype(np.int64))
        return {
            f"{setting}_{name}" if setting else name: value
            for setting, of_setting in by_setting.items()
            for name, value in self.score(of_setting, self.evaluated.labels).items()
        }

"""What the tasks `classification` and `multiple_choice` share: rows of image and text, evaluated with each modality
hidden.

N: rows of a split, B: rows of a batch, C: labels or choices, S: settings
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import datasets
import numpy as np
import torch
from transformers import EvalPrediction

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import RowDataArguments
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.row_batches import ModalityCollator, RowDataset
from fusion_captioner.optional_modalities import OptionalModalitiesModel
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.base_trainer import BaseTrainer
from fusion_captioner.training.model_card import CardText
from fusion_captioner.training.tasks.task import Task
from fusion_captioner.training.training_arguments import BaseTrainingArguments

RowData = TypeVar("RowData", bound=RowDataArguments)

IMAGE_INPUTS = ("pixel_values", "image_hidden_states")
TEXT_INPUTS = ("input_ids", "attention_mask")
# Inputs that evaluation hides, by the name of the setting, which is a prefix of its scores; first nothing is hidden.
IMAGE_AND_TEXT_SETTINGS: dict[str, Sequence[str]] = {"": (), "image_only": TEXT_INPUTS, "text_only": IMAGE_INPUTS}
ONE_SETTING: dict[str, Sequence[str]] = {"": ()}


@dataclass(frozen=True)
class Evaluated:
    """
    The outputs of an evaluation.

    Args:
        scores: setting → log-probabilities `(N, C)`; for several labels per row, and for regression, the logits.
        labels: right class numbers or values, `(N,)`, or several labels `(N, C)`.
        rows: numbers of the rows in their split, `(N,)`.
    """

    scores: dict[str, np.ndarray]
    labels: np.ndarray
    rows: np.ndarray


class ModalityTrainer(BaseTrainer):
    """
    [`BaseTrainer`] for classification and multiple choice; evaluates all settings in one pass.

    Args:
        settings: one of the dicts above.
        score: function of `scores` and `labels` of [`Evaluated`], called for every setting; returns named scores.
        card_text: the part of the model card that the task writes.
        problem_type: of the model, as in transformers; for multiple choice that of single labels.
        The rest as for `BaseTrainer`.
    """

    def __init__(
        self,
        *arguments: Any,
        settings: Mapping[str, Sequence[str]],
        score: Callable[[np.ndarray, np.ndarray], dict[str, float]],
        card_text: CardText,
        problem_type: str = "single_label_classification",
        **keywords: Any,
    ) -> None:
        self.card_text = card_text  # whose metrics break ties of early stopping
        super().__init__(*arguments, compute_metrics=self._score, **keywords)
        collator: Any = self.data_collator
        collator.keeps_row_numbers = True
        self.settings = settings
        self.score = score
        self.problem_type = problem_type
        self.evaluated = Evaluated({}, np.empty(0, np.int64), np.empty(0, np.int64))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name != "rows"}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss with all inputs; scores `(B, C, S)`; and the labels of each row followed by its number."""
        inputs = self._prepare_inputs(inputs)
        rows = inputs.pop("rows")
        scores, losses = [], []
        with torch.inference_mode(), self.compute_loss_context_manager():
            for hidden in self.settings.values():
                shown = {name: value for name, value in inputs.items() if name not in hidden}
                outputs = model(**shown, return_dict=True)
                losses.append(outputs.loss)
                logits = outputs.logits.float()
                # as log-probabilities: `Trainer` pads batches with fewer choices by -100, which must be less than the
                # score of the best choice
                one_of_them = self.problem_type == "single_label_classification"
                scores.append(logits.log_softmax(dim=1) if one_of_them else logits)
        labels = inputs["labels"].view(len(rows), -1)
        return losses[0], torch.stack(scores, dim=-1), torch.cat((labels, rows.unsqueeze(1).to(labels.dtype)), dim=1)

    def evaluation_loop(self, *arguments, **keywords):
        with self.moving_average_weights():
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


class ModalityTask(Task[RowData]):
    """
    A task whose rows have an image and a text, each of which evaluation can hide.

    Class attributes:
        collator: class of the batches.
        problem_type: of the model, as in transformers.
    """

    collator: ClassVar[type[ModalityCollator]]
    problem_type = "single_label_classification"

    def __init__(self, data: RowData, config: FusionCaptionerConfig | None = None) -> None:
        super().__init__(data, config)
        self.max_text_length = data.max_text_length

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Sequence[str]]:
        """What evaluation hides; see [`ModalityTrainer`]."""

    @abstractmethod
    def card_text(self) -> CardText:
        """The part of the model card that the task writes."""

    @abstractmethod
    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Named scores of one setting."""

    def trainer(
        self,
        model: OptionalModalitiesModel,
        processor: FusionCaptionerProcessor,
        arguments: BaseTrainingArguments,
        splits: Mapping[str, datasets.Dataset],
        features: Mapping[str, ImageFeatures],
    ) -> ModalityTrainer:
        reads_images = "image" in self.data.modalities
        parts = {role: RowDataset(rows, features.get(role), reads_images) for role, rows in splits.items()}
        return ModalityTrainer(
            model=model,
            args=arguments,
            data_collator=self.collator(processor, self.data.modalities, self.data.skip_bad_images),
            train_dataset=parts.get("train"),
            eval_dataset=parts.get("eval"),
            processing_class=processor,
            settings=self.settings,
            score=self.score,
            card_text=self.card_text(),
            problem_type=self.problem_type,
        )

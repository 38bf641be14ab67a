"""The task `classification`: a label, several labels or a number for images with texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import LabelledDataArguments
from fusion_captioner.data.label_collating import LabelCollator
from fusion_captioner.data.labelled_images import class_weights, load_labelled_images, positive_weights
from fusion_captioner.metrics.classification import auroc, auroc_interval, classification_scores, multi_label_scores
from fusion_captioner.metrics.regression import regression_scores
from fusion_captioner.sequence_classification import FusionCaptionerForSequenceClassification
from fusion_captioner.training.modality_trainer import (
    IMAGE_AND_TEXT_SETTINGS,
    ONE_SETTING,
    ModalityTrainer,
)
from fusion_captioner.training.tasks.modalities import ModalityTask


class ClassificationTask(ModalityTask[LabelledDataArguments]):
    """
    What is particular to the task; see [`~fusion_captioner.training.tasks.tasks.HeadTask`].

    Args:
        data: the section `data`.
        config: of the checkpoint that training goes on from, or that is evaluated; None: of none.

    Raises:
        ValueError: the checkpoint is a classifier of another `problem_type`.
    """

    head = FusionCaptionerForSequenceClassification
    trained_to = "classify"
    collator = LabelCollator

    def __init__(self, data: LabelledDataArguments, config: FusionCaptionerConfig | None = None) -> None:
        super().__init__(data)
        self.problem_type = data.problem_type
        self.names: list[str] = []
        self._known_names: list[str] | None = None
        if config is not None and self.head.__name__ in (config.architectures or []):
            if config.problem_type not in (None, data.problem_type):
                raise ValueError(
                    f"`data.problem_type` ({data.problem_type!r}) differs from the classifier's, {config.problem_type!r}; "
                    "set it so, or start from a captioner."
                )
            self._known_names = [name for _, name in sorted(config.id2label.items())]  # type: ignore[union-attr]

    def load_run(self) -> dict[str, datasets.Dataset]:
        loaded, self.names = load_labelled_images(self.data, self.data.limits, self._known_names)
        return {role: loaded[split] for role, split in self.data.roles.items()}

    def load_split(self, split: str, limit: int | None) -> datasets.Dataset:
        loaded, self.names = load_labelled_images(self.data, {split: limit}, self._known_names)
        return loaded[split]

    def images(self, rows: datasets.Dataset) -> datasets.Dataset:
        return rows

    def texts(self, rows: datasets.Dataset) -> list[str]:
        # without texts, a tokenizer still has to be there
        return rows["text"] if "text" in self.data.modalities else self.names

    def config_fields(self, rows: datasets.Dataset) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
            "problem_type": self.problem_type,
        }
        if self.data.class_balance and self.problem_type == "multi_label_classification":
            fields["class_weights"] = positive_weights(rows["label"], self.names, self.data.class_balance)
        elif self.data.class_balance:
            fields["class_weights"] = class_weights(rows["label"], len(self.names), self.data.class_balance)
        return fields

    @property
    def settings(self) -> Mapping[str, Sequence[str]]:
        return IMAGE_AND_TEXT_SETTINGS if len(set(self.data.modalities)) > 1 else ONE_SETTING

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Accuracy and macro-F1, and of two labels the AUROC of the second, where both occur; of several labels a row see
        `multi_label_scores`, of numbers `regression_scores`."""
        return self._score(scores, labels)[0]

    def report(self, trainer: ModalityTrainer, rows: datasets.Dataset) -> dict[str, Any]:
        """For each setting the scores, those of each label, and the 95 % interval of the AUROC of two, over `group`s."""
        evaluated = trainer.evaluated
        groups = np.asarray(rows["group"])[evaluated.rows]
        single = self.problem_type == "single_label_classification"
        settings: dict[str, Any] = {}
        for setting, scores in evaluated.scores.items():
            numbers, of_labels = self._score(scores, evaluated.labels)
            found: dict[str, Any] = dict(numbers)
            if single and "auroc" in numbers and len(set(groups)) > 1:
                found["auroc_95"] = auroc_interval(scores[:, 1], evaluated.labels, groups)
            if of_labels:
                found["labels"] = of_labels
            settings[setting or " and ".join(self.data.modalities)] = found
        return {"rows": len(evaluated.rows), **settings}

    def _score(
        self, scores: np.ndarray, labels: np.ndarray
    ) -> tuple[dict[str, float], dict[str, dict[str, float]] | None]:
        """The scores, and those of each label, of which regression has none."""
        if self.problem_type == "regression":
            return regression_scores(scores[:, 0], labels), None
        if self.problem_type == "multi_label_classification":
            return multi_label_scores(scores, labels, self.names)
        numbers, of_labels = classification_scores(scores.argmax(axis=1), labels, self.names)
        if len(self.names) == 2 and 0 < labels.sum() < len(labels):
            numbers["auroc"] = auroc(scores[:, 1], labels)
        return numbers, of_labels

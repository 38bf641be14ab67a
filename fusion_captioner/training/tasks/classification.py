"""The task `classification`: one label, several labels or a number for each image with its text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import LabelledDataArguments
from fusion_captioner.data.labelled_images import class_weights, load_labelled_images, positive_weights
from fusion_captioner.data.row_batches import LabelCollator
from fusion_captioner.metrics.classification import auroc, auroc_interval, classification_scores, multi_label_scores
from fusion_captioner.metrics.regression import regression_scores
from fusion_captioner.sequence_classification import FusionCaptionerForSequenceClassification
from fusion_captioner.training.model_card import CardText
from fusion_captioner.training.tasks.modalities import (
    IMAGE_AND_TEXT_SETTINGS,
    ONE_SETTING,
    ModalityTask,
    ModalityTrainer,
)
from fusion_captioner.training.training_arguments import BaseTrainingArguments

# Python code of the card that prints a prediction, by `problem_type`.
PREDICTIONS = {
    "single_label_classification": "model.config.id2label[int(logits.argmax())]",
    "multi_label_classification": "[name for number, name in model.config.id2label.items() if logits[number] > 0]",
    "regression": "float(logits)",
}


@dataclass
class ClassificationTrainingArguments(BaseTrainingArguments):
    """[`BaseTrainingArguments`] for classification; the best checkpoint has the best macro-F1, of regression the best
    correlation."""

    output_dir: str = field(default="runs/classifier", metadata={"help": "Folder of checkpoints and results."})
    metric_for_best_model: str | None = field(
        default="macro_f1", metadata={"help": "Score that chooses the best checkpoint; of regression `pearson`."}
    )


class ClassificationTask(ModalityTask[LabelledDataArguments]):
    """
    See [`~fusion_captioner.training.tasks.task.Task`].

    Raises:
        ValueError: the checkpoint is a classifier of another `problem_type`.
    """

    model_class = FusionCaptionerForSequenceClassification
    data_arguments = LabelledDataArguments
    training_arguments = ClassificationTrainingArguments
    trained_to = "classify"
    collator = LabelCollator

    def __init__(self, data: LabelledDataArguments, config: FusionCaptionerConfig | None = None) -> None:
        super().__init__(data, config)
        self.problem_type = data.problem_type
        self.names: list[str] = []
        self._known_names: list[str] | None = None
        if config is not None and self.model_class.__name__ in (config.architectures or []):
            if config.problem_type not in (None, data.problem_type):
                raise ValueError(
                    f"`data.problem_type` ({data.problem_type!r}) differs from the classifier's, "
                    f"{config.problem_type!r}; set it so, or start from a captioner."
                )
            self._known_names = [name for _, name in sorted(config.id2label.items())]  # type: ignore[union-attr]

    @classmethod
    def check(cls, data: LabelledDataArguments, training: ClassificationTrainingArguments) -> None:
        if data.problem_type == "regression" and training.metric_for_best_model == "macro_f1":
            # the default, a score that regression does not have
            training.metric_for_best_model = "pearson"
        super().check(data, training)

    def load_run(self) -> dict[str, Any]:
        loaded, self.names = load_labelled_images(self.data, self.data.limits, self._known_names)
        return {role: loaded[split] for role, split in self.data.roles.items()}

    def load_split(self, split: str, limit: int | None) -> datasets.Dataset:
        loaded, self.names = load_labelled_images(self.data, {split: limit}, self._known_names)
        return loaded[split]

    def texts(self, rows: datasets.Dataset) -> list[str]:
        # without texts there must still be a tokenizer
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

    def card_text(self) -> CardText:
        prediction = PREDICTIONS[self.problem_type]
        return CardText(
            pipeline_tag="image-classification",
            tags=("text-classification", "multimodal"),
            metrics={
                "accuracy": "accuracy",
                "macro_f1": "f1",
                "auroc": "roc_auc",
                "pearson": "pearsonr",
                "mae": "mae",
            },
            auto_class="AutoModelForSequenceClassification",
            about=f"A classifier of images with texts by cross-modal fusion (labels: {', '.join(self.names)})",
            usage=f"""\
text = "the text that belongs to the image"
inputs = processor(images="photo.jpg", text=text, add_eos=True, truncation=True, return_tensors="pt")
logits = model(**inputs).logits[0]  # `text` or `images` may be omitted
print({prediction})""",
            limits="It repeats the judgements of the people who labelled its training data, and knows only these "
            "labels. It is no\nmedical device, and not for decisions about people.",
        )

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Accuracy and macro-F1, and for two labels the AUROC of the second, where both occur; for several labels per
        row see `multi_label_scores`, for regression `regression_scores`."""
        return self._score(scores, labels)[0]

    def report(self, trainer: ModalityTrainer, rows: datasets.Dataset) -> dict[str, Any]:
        """For each setting the scores, the scores of each label, and for two labels the 95 % interval of the AUROC
        over groups."""
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
        """The scores, and the scores of each label; None for regression."""
        if self.problem_type == "regression":
            return regression_scores(scores[:, 0], labels), None
        if self.problem_type == "multi_label_classification":
            return multi_label_scores(scores, labels, self.names)
        numbers, of_labels = classification_scores(scores.argmax(axis=1), labels, self.names)
        if len(self.names) == 2 and 0 < labels.sum() < len(labels):
            numbers["auroc"] = auroc(scores[:, 1], labels)
        return numbers, of_labels

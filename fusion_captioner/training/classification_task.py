"""The task `classification`: labels of images with texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.metrics.classification import auroc, auroc_interval, classification_scores
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.sequence_classification import FusionCaptionerForSequenceClassification
from fusion_captioner.training.feature_shards import ImageFeatures
from fusion_captioner.training.label_collating import LabelCollator
from fusion_captioner.training.labelled_images import class_weights, load_labelled_images
from fusion_captioner.training.modality_trainer import (
    IMAGE_AND_TEXT_SETTINGS,
    ONE_SETTING,
    ModalityTrainer,
)
from fusion_captioner.training.row_arguments import LabelledDataArguments
from fusion_captioner.training.row_dataset import RowDataset
from fusion_captioner.training.training_arguments import HeadTrainingArguments


class ClassificationTask:
    """
    What is particular to the task; see [`~fusion_captioner.training.head_tasks.HeadTask`].

    Args:
        data: the section `data`.
        config: of the checkpoint that training goes on from, or that is evaluated; None: of none.
    """

    head = FusionCaptionerForSequenceClassification
    trained_to = "classify"
    mirrored: Sequence[str] = ()

    def __init__(self, data: LabelledDataArguments, config: FusionCaptionerConfig | None = None) -> None:
        self.data = data
        self.names: list[str] = []
        self._known_names: list[str] | None = None
        if config is not None and self.head.__name__ in (config.architectures or []):
            self._known_names = [name for _, name in sorted(config.id2label.items())]  # type: ignore[union-attr]

    @property
    def max_text_length(self) -> int:
        return self.data.max_text_length

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
            "problem_type": "single_label_classification",
        }
        if self.data.class_balance:
            fields["class_weights"] = class_weights(rows["label"], len(self.names), self.data.class_balance)
        return fields

    def trainer(
        self,
        model: FusionCaptionerForSequenceClassification,
        processor: FusionCaptionerProcessor,
        arguments: HeadTrainingArguments,
        splits: Mapping[str, datasets.Dataset],
        features: Mapping[str, ImageFeatures],
    ) -> ModalityTrainer:
        reads_images = "image" in self.data.modalities
        parts = {role: RowDataset(rows, features.get(role), reads_images) for role, rows in splits.items()}
        return ModalityTrainer(
            model=model,
            args=arguments,
            data_collator=LabelCollator(processor, self.data.modalities, self.data.skip_bad_images),
            train_dataset=parts.get("train"),
            eval_dataset=parts.get("eval"),
            processing_class=processor,
            settings=IMAGE_AND_TEXT_SETTINGS if len(set(self.data.modalities)) > 1 else ONE_SETTING,
            score=self.score,
        )

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Accuracy and macro-F1; of two labels also the AUROC of the second, where both occur."""
        numbers, _ = classification_scores(scores.argmax(axis=1), labels, self.names)
        if len(self.names) == 2 and 0 < labels.sum() < len(labels):
            numbers["auroc"] = auroc(scores[:, 1], labels)
        return numbers

    def report(self, trainer: ModalityTrainer, rows: datasets.Dataset) -> dict[str, Any]:
        """For each setting the scores, those of each label, and the 95 % interval of an AUROC, over `group`s."""
        evaluated = trainer.evaluated
        groups = np.asarray(rows["group"])[evaluated.rows]
        settings: dict[str, Any] = {}
        for setting, scores in evaluated.scores.items():
            numbers: dict[str, Any] = self.score(scores, evaluated.labels)
            if "auroc" in numbers and len(set(groups)) > 1:
                numbers["auroc_95"] = auroc_interval(scores[:, 1], evaluated.labels, groups)
            _, numbers["labels"] = classification_scores(scores.argmax(axis=1), evaluated.labels, self.names)
            settings[setting or " and ".join(self.data.modalities)] = numbers
        return {"rows": len(evaluated.rows), **settings}

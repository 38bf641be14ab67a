"""`ModalityTask`: what the tasks `classification` and `multiple_choice` share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

import datasets
import numpy as np

from fusion_captioner.data.arguments import RowDataArguments
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.modality_collating import ModalityCollator
from fusion_captioner.data.row_dataset import RowDataset
from fusion_captioner.optional_modalities import OptionalModalitiesModel
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.modality_trainer import ModalityTrainer
from fusion_captioner.training.training_arguments import HeadTrainingArguments

Data = TypeVar("Data", bound=RowDataArguments)


class ModalityTask(ABC, Generic[Data]):
    """
    A task whose rows have an image and a text, either of which evaluation also hides; see
    [`~fusion_captioner.training.tasks.tasks.HeadTask`].

    Args:
        data: the section `data`.
    """

    collator: ClassVar[type[ModalityCollator]]
    problem_type = "single_label_classification"
    mirrored: Sequence[str] = ()

    def __init__(self, data: Data) -> None:
        self.data = data

    @property
    def max_text_length(self) -> int:
        return self.data.max_text_length

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Sequence[str]]:
        """What evaluation hides; see [`~fusion_captioner.training.modality_trainer.ModalityTrainer`]."""

    @abstractmethod
    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Named scores of one setting."""

    def trainer(
        self,
        model: OptionalModalitiesModel,
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
            data_collator=self.collator(processor, self.data.modalities, self.data.skip_bad_images),
            train_dataset=parts.get("train"),
            eval_dataset=parts.get("eval"),
            processing_class=processor,
            settings=self.settings,
            score=self.score,
            problem_type=self.problem_type,
        )

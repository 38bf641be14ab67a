"""`Task`: what `train` and `evaluate` need to know of a task. Each task is one file in this folder."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import datasets

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import DataArguments, RowDataArguments
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerPreTrainedModel
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.base_trainer import BaseTrainer
from fusion_captioner.training.model_card import TrainingRecord, public_name
from fusion_captioner.training.training_arguments import BaseTrainingArguments

Data = TypeVar("Data", bound=DataArguments | RowDataArguments)
# Key of the features of mirrored training images, among the features of `train` and `eval`.
MIRRORED = "mirrored"


class Task(ABC, Generic[Data]):
    """
    A task: reads its rows, makes its trainer, and reports its scores.

    Args:
        data: the section `data`.
        config: config of the checkpoint that training starts from, or that is evaluated; None: there is none.

    Class attributes:
        model_class: class of the model.
        data_arguments, training_arguments: classes of the sections `data` and `training`.
        stages: classes of the section `training` by the value of `training.stage`, the first is the default; empty:
            there are no stages.
        trained_to: completes the sentence "this model was trained to ...".

    Attributes:
        config: as given.
        max_text_length: maximum length of a text in tokens, for a new tokenizer.
        languages: codes of the languages of the texts, if there are several.
        mirrored: roles of the rows whose images are also wanted mirrored, in the cache of features.
    """

    model_class: ClassVar[type[FusionCaptionerPreTrainedModel]]
    data_arguments: ClassVar[type[Any]]
    training_arguments: ClassVar[type[BaseTrainingArguments]]
    stages: ClassVar[Mapping[str, type[BaseTrainingArguments]]] = {}
    trained_to: ClassVar[str]

    def __init__(self, data: Data, config: FusionCaptionerConfig | None = None) -> None:
        self.data = data
        self.config = config
        self.max_text_length = 512
        self.languages: Sequence[str] = ()
        self.mirrored: Sequence[str] = ()

    @classmethod
    def check(cls, data: Data, training: Any) -> None:
        """
        Check the sections `data` and `training` together, and set defaults of one that follow from the other.

        Raises:
            ValueError: they do not fit together; the message names the fields.
        """
        if data.feature_cache is not None and training.trains_image_encoder:
            raise ValueError(
                f"`data.feature_cache` ({data.feature_cache}) holds features of a frozen image encoder, and "
                f"`training.train_image_encoder_from_step` ({training.train_image_encoder_from_step}) trains it; "
                "unset one of them."
            )

    @abstractmethod
    def load_run(self) -> dict[str, Any]:
        """The rows to train on, `train`, and the rows to evaluate, `eval`, if any: a `Dataset` each; of streams
        `train` is an `IterableDataset`."""

    @abstractmethod
    def load_split(self, split: str, limit: int | None) -> datasets.Dataset:
        """The first `limit` rows of a split to evaluate; None: all."""

    def images(self, rows: datasets.Dataset) -> datasets.Dataset:
        """The images of rows, each at least once: columns `image` and `image_id`."""
        return rows

    @abstractmethod
    def texts(self, rows: Any) -> Iterable[str]:
        """The texts that a new tokenizer is trained on."""

    def whole_texts(self, rows: Any) -> Iterable[str]:
        """The training texts as the model reads them, of which too long ones are cut."""
        return self.texts(rows)

    def config_fields(self, rows: Any) -> dict[str, Any]:
        """Fields of the model's config that follow from the training rows."""
        return {}

    def concept_token_ids(self, rows: Any, processor: FusionCaptionerProcessor) -> list[int] | list[list[int]]:
        """The concepts of a model that looks for some, where its config names none.

        Raises:
            ValueError: the task has no captions to choose them from.
        """
        raise ValueError(
            "`model.config` sets `num_concepts`, `concept_loss_weight` or `concept_bias`, and only the task "
            "`captioning` chooses concepts; name them by `model.config.concept_token_ids`, or start from a captioner "
            "that has some."
        )

    @abstractmethod
    def trainer(
        self,
        model: Any,
        processor: FusionCaptionerProcessor,
        arguments: Any,
        splits: Mapping[str, Any],
        features: Mapping[str, ImageFeatures],
    ) -> BaseTrainer:
        """
        The trainer of the task.

        Args:
            model, processor: of `model_class`, and its processor.
            arguments: the section `training`.
            splits: `train` and `eval`, as `load_run` gives them; either may be missing.
            features: cached features of the splits, and of `MIRRORED` training images; empty without a cache.
        """

    @abstractmethod
    def report(self, trainer: Any, rows: datasets.Dataset) -> dict[str, Any]:
        """All results of the trainer's last evaluation, which was of `rows`, for JSON."""

    def generated(self, trainer: Any) -> tuple[str, list[dict[str, str]]] | None:
        """The texts that the last evaluation generated, as lines of JSON and the name of their file; None without
        any."""
        return None

    def training_record(self) -> TrainingRecord:
        """What the card says of the data."""
        train, evaluated = self.data.train_split, self.data.eval_split
        sources = self.data.splits or {}
        return TrainingRecord(
            data=[public_name(self.data.source)],
            train_split=sources.get(train, train),
            eval_split=None if evaluated is None else sources.get(evaluated, evaluated),
        )

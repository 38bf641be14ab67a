"""The task `captioning`: captions of images, by cross-entropy or by self-critical training."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import datasets

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import DataArguments
from fusion_captioner.data.caption_datasets import captions_of, load_split, load_splits
from fusion_captioner.data.caption_sampling import CaptionDataset, StreamedCaptionDataset
from fusion_captioner.data.collating import CaptionCollator, SelfCriticalCollator
from fusion_captioner.data.concept_words import choose_concepts
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.prompted_texts import add_questions
from fusion_captioner.data.references import load_texts
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.model_card import TrainingRecord, public_name
from fusion_captioner.training.self_critical.arguments import SelfCriticalArguments
from fusion_captioner.training.self_critical.trainer import SelfCriticalTrainer
from fusion_captioner.training.tasks.task import MIRRORED, Task
from fusion_captioner.training.trainer import FusionCaptionerTrainer, check_caption_length, keep_generation_settings
from fusion_captioner.training.training_arguments import BaseTrainingArguments, FusionCaptionerTrainingArguments

logger = logging.getLogger(__name__)

# Rows of a stream among which the next is drawn. Their images are not decoded: some 100 MB for rows of the Hub.
SHUFFLED_ROWS = 1000


class CaptioningTask(Task[DataArguments]):
    """See [`~fusion_captioner.training.tasks.task.Task`]. The training rows may be a stream."""

    model_class = FusionCaptionerForConditionalGeneration
    data_arguments = DataArguments
    training_arguments = FusionCaptionerTrainingArguments
    stages = {"cross_entropy": FusionCaptionerTrainingArguments, "self_critical": SelfCriticalArguments}  # noqa: RUF012
    trained_to = "caption"

    def __init__(self, data: DataArguments, config: FusionCaptionerConfig | None = None) -> None:
        super().__init__(data, config)
        self.languages = list(data.languages)
        self.mirrored = mirrored_roles(data)

    @classmethod
    def check(cls, data: DataArguments, training: FusionCaptionerTrainingArguments) -> None:
        check_augmentations(data, training)
        if data.streaming and training.max_steps <= 0:
            raise ValueError(
                f"`training.max_steps` ({training.max_steps}) must be positive with `data.streaming`, since the "
                "length of a stream is not known; set the number of steps to train."
            )
        if isinstance(training, SelfCriticalArguments):
            for name in ("question_sources", "hide_images"):
                if value := getattr(data, name):
                    raise ValueError(
                        f"`data.{name}` ({value}) is for cross-entropy, and `training.stage` is 'self_critical'; "
                        "unset one of them."
                    )
        if data.feature_cache is not None and training.train_image_encoder_from_step == 0:
            raise ValueError(
                f"`data.feature_cache` ({data.feature_cache}) holds features of a frozen image encoder, and "
                "`training.train_image_encoder_from_step` (0) trains it from the start; unset one of them, or set the "
                "step above 0."
            )

    def load_run(self) -> dict[str, Any]:
        if self.data.hide_images:
            return {"train": load_texts(self.data)}
        splits = load_splits(self.data)
        if self.data.question_sources:
            splits["train"] = add_questions(splits["train"], self.data)
        return splits

    def load_split(self, split: str, limit: int | None) -> datasets.Dataset:
        return load_split(self.data, split, limit)

    def texts(self, rows: datasets.Dataset | datasets.IterableDataset) -> Iterator[str]:
        if isinstance(rows, datasets.IterableDataset):
            logger.info(
                "reading all captions of the stream once, to train the tokenizer; `tokenizer.path` avoids that"
            )
        return chain(captions_of(rows), chain.from_iterable(rows["prompts"]) if self.data.question_sources else ())

    def concept_token_ids(
        self, rows: datasets.Dataset | datasets.IterableDataset, processor: FusionCaptionerProcessor
    ) -> list[int] | list[list[int]]:
        """Words on which the captions of an image agree."""
        if self.data.question_sources:  # answers do not describe their image
            described = (number for number, prompts in enumerate(rows["prompts"]) if not any(prompts))
            rows = rows.select(list(described))  # type: ignore[union-attr]
        texts = rows.select_columns(["captions", *(["languages"] if self.languages else [])])
        chosen = choose_concepts(texts, processor.tokenizer, self.data.concept_min_images, processor.languages)
        lists: dict[str, Any] = dict(
            zip(processor.languages or ["the captions"], chosen if self.languages else [chosen])
        )
        counts = ", ".join(f"{len(ids)} words of {name}" for name, ids in lists.items())
        logger.info("concepts: %s (`data.concept_min_images`)", counts)
        return chosen

    def trainer(
        self,
        model: FusionCaptionerForConditionalGeneration,
        processor: FusionCaptionerProcessor,
        arguments: FusionCaptionerTrainingArguments,
        splits: Mapping[str, Any],
        features: Mapping[str, ImageFeatures],
    ) -> FusionCaptionerTrainer:
        hidden_width = model.model.image_encoder.hidden_size if self.data.hide_images else None
        parts = caption_datasets(self.data, splits, features, arguments.seed, hidden_width)
        check_caption_length(model, arguments)
        if "train" in parts:
            keep_generation_settings(model, arguments)
        self_critical = isinstance(arguments, SelfCriticalArguments)
        trainer_class = SelfCriticalTrainer if self_critical else FusionCaptionerTrainer
        collator_class = SelfCriticalCollator if self_critical else CaptionCollator
        return trainer_class(
            model=model,
            args=arguments,
            data_collator=collator_class(processor, skip_bad_images=self.data.skip_bad_images),
            train_dataset=parts.get("train"),
            eval_dataset=parts.get("eval"),
            processing_class=processor,
            metric_tokenizer=self.data.metric_tokenizer,
        )

    def report(self, trainer: FusionCaptionerTrainer, rows: datasets.Dataset) -> dict[str, Any]:
        """The scores of the generated captions, and their signature."""
        if not trainer.scores:
            return {"images": len(rows)}
        return {"images": len(trainer.evaluated_captions), **trainer.scores, "signature": trainer.score_signature}

    def generated(self, trainer: FusionCaptionerTrainer) -> tuple[str, list[dict[str, str]]] | None:
        captions = trainer.evaluated_captions
        lines = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
        return ("eval_captions.jsonl", lines) if lines else None

    def training_record(self) -> TrainingRecord:
        return caption_record(super().training_record(), self.data)


def caption_record(record: TrainingRecord, data: DataArguments) -> TrainingRecord:
    """The record of data that has further sources."""
    return replace(record, data=[public_name(source) for source in (data.source, *data.more_train_sources)])


def mirrored_roles(data: DataArguments) -> list[str]:
    """Roles of the rows whose images are also wanted mirrored."""
    return ["train"] if "flip" in data.augmentations else []


def check_augmentations(data: DataArguments, training: BaseTrainingArguments) -> None:
    """
    Raises:
        ValueError: images are to be augmented, and none is read.
    """
    uncached = set(data.augmentations) - {"flip"}
    if uncached and data.feature_cache is not None and not training.trains_image_encoder:
        raise ValueError(
            f"`data.augmentations` ({data.augmentations}) change images, and with `data.feature_cache` and a frozen "
            "image encoder none is read; remove all but `flip`, or unset the cache."
        )


def caption_datasets(
    data: DataArguments,
    splits: Mapping[str, Any],
    features: Mapping[str, ImageFeatures],
    seed: int,
    hidden_width: int | None = None,
) -> dict[str, CaptionDataset | StreamedCaptionDataset]:
    """The rows of `train` and `eval`, with captions drawn for each epoch, for the data loader."""
    parts: dict[str, CaptionDataset | StreamedCaptionDataset] = {}
    if isinstance(train := splits.get("train"), datasets.IterableDataset):
        shuffled = train.shuffle(seed=seed, buffer_size=SHUFFLED_ROWS)
        parts["train"] = StreamedCaptionDataset(shuffled, data.captions_per_image, seed, endless=True)
    elif train is not None:
        mirrored = features.get(MIRRORED)
        parts["train"] = CaptionDataset(
            train, data.captions_per_image, seed, features.get("train"), data.augmentations, mirrored, hidden_width
        )
    if "eval" in splits:
        parts["eval"] = CaptionDataset(splits["eval"], 1, seed, features.get("eval"))
    return parts

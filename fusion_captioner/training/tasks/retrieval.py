"""The task `retrieval`: images found by their captions, and captions found by their images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from transformers.trainer_utils import EvalLoopOutput

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import DataArguments
from fusion_captioner.data.caption_datasets import captions_of, load_split, load_splits
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import ImageCollator
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.evaluation.retrieval_scores import retrieval_scores
from fusion_captioner.image_text_retrieval import FusionCaptionerForImageTextRetrieval
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.base_trainer import BaseTrainer
from fusion_captioner.training.model_card import CardText, TrainingRecord
from fusion_captioner.training.tasks.captioning import (
    caption_datasets,
    caption_record,
    check_augmentations,
    mirrored_roles,
)
from fusion_captioner.training.tasks.task import Task
from fusion_captioner.training.training_arguments import BaseTrainingArguments

CARD = CardText(
    pipeline_tag="zero-shot-image-classification",
    tags=("image-text-retrieval",),
    metrics={},
    auto_class="AutoModelForZeroShotImageClassification",
    about="Two towers that embed images and texts in one space, and a fused score for re-ranking",
    usage="""\
inputs = processor(images="photo.jpg", text=["a dog", "a cat"], add_eos=True, return_tensors="pt")
print(model(**inputs).logits_per_image.softmax(dim=-1))""",
    limits="It finds what its training data shows and describes, in the same words, and ranks something first "
    "even where nothing\nfits.",
)


@dataclass
class RetrievalTrainingArguments(BaseTrainingArguments):
    """[`BaseTrainingArguments`] for retrieval; the best checkpoint has the best mean recall at 1.

    Raises:
        ValueError: the settings do not fit together; the message names the fields.
    """

    output_dir: str = field(default="runs/retrieval", metadata={"help": "Folder of checkpoints and results."})
    metric_for_best_model: str | None = field(
        default="mean_R@1", metadata={"help": "Score that chooses the best checkpoint."}
    )
    rerank_candidates: int = field(
        default=20,
        metadata={"help": "Candidates per query that evaluation re-ranks by matching scores; 0: none."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rerank_candidates < 0:
            raise ValueError(f"`rerank_candidates` ({self.rerank_candidates}) must be 0 (none) or positive.")


class RetrievalCollator(ImageCollator):
    """Batches of images with k captions each, for the contrastive and matching losses.

    Args:
        processor: a `FusionCaptionerProcessor`; captions that are longer than its tokenizer allows are cut.
        skip_bad_images: leave out an image that cannot be decoded, with a warning, instead of raising.
    """

    def __init__(self, processor: Any, skip_bad_images: bool = False) -> None:
        super().__init__(processor, skip_bad_images=skip_bad_images)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: rows of a [`~fusion_captioner.data.caption_sampling.CaptionDataset`], k captions each.

        Returns:
            `pixel_values` (B, 3, H, W) or `image_hidden_states` (B, P, Dv), `input_ids` and `attention_mask` (B·k, L),
            and `return_loss`.

        Raises:
            FileNotFoundError, OSError, ValueError: an image cannot be decoded, or no image of the batch can.
        """
        kept, batch = self._images(rows)
        captions = [caption for row in kept for caption in row["captions"]]
        texts = self.processor(text=captions, add_eos=True, truncation=True, return_tensors="pt")
        names = {"image_ids": [row["image_id"] for row in kept]} if self.keeps_image_ids else {}
        return batch | dict(texts) | {"return_loss": True} | names


class RetrievalTrainer(BaseTrainer):
    """
    [`BaseTrainer`] for `FusionCaptionerForImageTextRetrieval`. Evaluation ranks all captions of all images of the
    split; every process ranks all.

    Args:
        args (`RetrievalTrainingArguments`).
        train_dataset, eval_dataset (`CaptionDataset`).
        The rest as for `BaseTrainer`.
    """

    args: RetrievalTrainingArguments
    model: FusionCaptionerForImageTextRetrieval
    card_text = CARD

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.scores: dict[str, float] = {}

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Recall in both directions; no loss, which depends on the composition of batches."""
        data: CaptionDataset = dataloader.dataset
        with self.moving_average_weights():
            self.scores = retrieval_scores(
                self.accelerator.unwrap_model(self.model),
                self.processing_class,
                data.rows,
                data.features,
                batch_size=self.args.eval_batch_size,
                candidates=self.args.rerank_candidates,
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.scores.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=len(data.rows))


class RetrievalTask(Task[DataArguments]):
    """See [`~fusion_captioner.training.tasks.task.Task`]; rows are those of captioning."""

    model_class = FusionCaptionerForImageTextRetrieval
    data_arguments = DataArguments
    training_arguments = RetrievalTrainingArguments
    trained_to = "find images by texts"

    def __init__(self, data: DataArguments, config: FusionCaptionerConfig | None = None) -> None:
        super().__init__(data, config)
        self.mirrored = mirrored_roles(data)

    @classmethod
    def check(cls, data: DataArguments, training: RetrievalTrainingArguments) -> None:
        check_augmentations(data, training)
        for name in ("languages", "question_sources", "hide_images"):
            if value := getattr(data, name):
                raise ValueError(f"`data.{name}` ({value}) is for captioning; leave it out.")
        if data.streaming:
            raise ValueError("`data.streaming` (True) is for captioning, and `task` is 'retrieval'; unset it.")
        if data.metric_tokenizer != "auto":
            raise ValueError(
                f"`data.metric_tokenizer` ({data.metric_tokenizer!r}) is for scores of captions, and `task` is "
                "'retrieval'; unset it."
            )
        super().check(data, training)

    def load_run(self) -> dict[str, Any]:
        return load_splits(self.data)

    def load_split(self, split: str, limit: int | None) -> datasets.Dataset:
        return load_split(self.data, split, limit)

    def texts(self, rows: datasets.Dataset) -> Iterator[str]:
        return captions_of(rows)

    def config_fields(self, rows: datasets.Dataset) -> dict[str, Any]:
        return {"contrastive_loss_weight": 1.0, "matching_loss_weight": 1.0}

    def trainer(
        self,
        model: FusionCaptionerForImageTextRetrieval,
        processor: FusionCaptionerProcessor,
        arguments: RetrievalTrainingArguments,
        splits: Mapping[str, datasets.Dataset],
        features: Mapping[str, ImageFeatures],
    ) -> RetrievalTrainer:
        parts = caption_datasets(self.data, splits, features, arguments.seed)
        return RetrievalTrainer(
            model=model,
            args=arguments,
            data_collator=RetrievalCollator(processor, self.data.skip_bad_images),
            train_dataset=parts.get("train"),
            eval_dataset=parts.get("eval"),
            processing_class=processor,
        )

    def report(self, trainer: RetrievalTrainer, rows: datasets.Dataset) -> dict[str, Any]:
        """Recall in both directions, by the towers and re-ranked."""
        captions = sum(len(texts) for texts in rows["captions"])
        return {"images": len(rows), "captions": captions, **trainer.scores}

    def training_record(self) -> TrainingRecord:
        return caption_record(super().training_record(), self.data)

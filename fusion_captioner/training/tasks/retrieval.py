"""The task `retrieval`: images by their captions, and captions by their images."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import DataArguments
from fusion_captioner.data.caption_datasets import captions_of, load_split, load_splits
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.image_text_retrieval import FusionCaptionerForImageTextRetrieval
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.retrieval_trainer import RetrievalCollator, RetrievalTrainer
from fusion_captioner.training.training_arguments import RetrievalTrainingArguments

# Among the features of the splits, those of the mirrored training images.
MIRRORED = "mirrored"


class RetrievalTask:
    """
    What is particular to the task; see [`~fusion_captioner.training.tasks.tasks.HeadTask`].

    Args:
        data: the section `data`, as for captioning.
        config: of the checkpoint that training goes on from, or that is evaluated; not looked at.
    """

    head = FusionCaptionerForImageTextRetrieval
    trained_to = "find images by texts"
    max_text_length = 512

    def __init__(self, data: DataArguments, config: FusionCaptionerConfig | None = None) -> None:
        self.data = data
        self.mirrored: Sequence[str] = ["train"] if "flip" in data.augmentations else []

    def load_run(self) -> dict[str, datasets.Dataset]:
        return load_splits(self.data)

    def load_split(self, split: str, limit: int | None) -> datasets.Dataset:
        return load_split(self.data, split, limit)

    def images(self, rows: datasets.Dataset) -> datasets.Dataset:
        return rows

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
        train_data = None
        if "train" in splits:
            train_data = CaptionDataset(
                splits["train"],
                self.data.captions_per_image,
                arguments.seed,
                features.get("train"),
                self.data.augmentations,
                features.get(MIRRORED),
            )
        eval_data = CaptionDataset(splits["eval"], 1, 0, features.get("eval")) if "eval" in splits else None
        return RetrievalTrainer(
            model=model,
            args=arguments,
            data_collator=RetrievalCollator(processor, self.data.skip_bad_images),
            train_dataset=train_data,
            eval_dataset=eval_data,
            processing_class=processor,
        )

    def report(self, trainer: RetrievalTrainer, rows: datasets.Dataset) -> dict[str, Any]:
        """Recall, both ways, of the towers and re-ranked."""
        captions = sum(len(texts) for texts in rows["captions"])
        return {"images": len(rows), "captions": captions, **trainer.scores}

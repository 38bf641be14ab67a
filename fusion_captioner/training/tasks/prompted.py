"""The task `generation`: answers to questions about images, reports of images with records, and captions beside them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import MODALITIES, PromptDataArguments
from fusion_captioner.data.caption_datasets import captions_of
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.prompted_texts import CAPTION, load_captions, load_prompted_texts, render_prompts
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.generation_trainer import (
    QUESTION_SETTINGS,
    TEXT_SETTINGS,
    GenerationTrainer,
    PromptCollator,
)
from fusion_captioner.training.train_captioner import keep_generation_settings
from fusion_captioner.training.training_arguments import GenerationTrainingArguments


class GenerationTask:
    """
    What is particular to the task; see [`~fusion_captioner.training.tasks.tasks.HeadTask`].

    Args:
        data: the section `data`.
        config: of the checkpoint that training goes on from, or that is evaluated; not looked at.
    """

    head = FusionCaptionerForConditionalGeneration
    trained_to = "answer"
    mirrored: Sequence[str] = ()

    def __init__(self, data: PromptDataArguments, config: FusionCaptionerConfig | None = None) -> None:
        self.data = data

    @property
    def max_text_length(self) -> int:
        return self.data.max_text_length

    def load_run(self) -> dict[str, datasets.Dataset]:
        splits = self.data.limits
        loaded = load_prompted_texts(self.data, splits, learned=self.data.train_split)
        if self.data.caption_source is not None:
            captions = load_captions(self.data, splits)
            loaded |= {split: datasets.concatenate_datasets([loaded[split], rows]) for split, rows in captions.items()}
        return {role: loaded[split] for role, split in self.data.roles.items()}

    def load_split(self, split: str, limit: int | None) -> datasets.Dataset:
        return load_prompted_texts(self.data, {split: limit})[split]

    def images(self, rows: datasets.Dataset) -> datasets.Dataset:
        return rows

    def texts(self, rows: datasets.Dataset) -> Iterator[str]:
        yield from (prompt for prompt in render_prompts(rows["turns"]) if prompt)
        yield from captions_of(rows)

    def config_fields(self, rows: datasets.Dataset) -> dict[str, Any]:
        return {}

    def trainer(
        self,
        model: FusionCaptionerForConditionalGeneration,
        processor: FusionCaptionerProcessor,
        arguments: GenerationTrainingArguments,
        splits: Mapping[str, datasets.Dataset],
        features: Mapping[str, ImageFeatures],
    ) -> GenerationTrainer:
        parts = {}
        for role, rows in splits.items():
            prompts = render_prompts(rows["turns"], str(processor.chat_template))
            parts[role] = CaptionDataset(rows.add_column("prompt", prompts), 1, arguments.seed, features.get(role))
        if "train" in parts:
            keep_generation_settings(model, arguments)
        hidden = set(MODALITIES) - set(self.data.modalities)
        return GenerationTrainer(
            model=model,
            args=arguments,
            data_collator=PromptCollator(
                processor, model if "image" in hidden else None, skip_bad_images=self.data.skip_bad_images
            ),
            train_dataset=parts.get("train"),
            eval_dataset=parts.get("eval"),
            processing_class=processor,
            settings={"": hidden} if hidden else QUESTION_SETTINGS if self.data.asks else TEXT_SETTINGS,
            asks=self.data.asks,
        )

    def report(self, trainer: GenerationTrainer, rows: datasets.Dataset) -> dict[str, Any]:
        """For each setting the scores, and of captions beside them; how many rows there are, and of which kind."""
        kinds = [kind for kind in rows["kind"] if kind != CAPTION]
        counts: dict[str, Any] = {"questions" if self.data.asks else "texts": len(kinds)}
        counts |= {kind: kinds.count(kind) for kind in sorted(set(kinds) - {""})}
        names = {"text": "question", "image": "image"} if self.data.asks else {"image": "image", "text": "text"}
        everything = " and ".join(names[name] for name in names if name in self.data.modalities)
        return counts | {setting or everything: scores for setting, scores in trainer.scores.items()}

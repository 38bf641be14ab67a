"""The task `prompted`: answers to questions about images, reports of images with records, and captions among them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import torch

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import MODALITIES, PromptDataArguments
from fusion_captioner.data.caption_datasets import captions_of
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import CaptionCollator
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.prompted_texts import CAPTION, load_captions, load_prompted_texts, render_prompts
from fusion_captioner.evaluation.generated_captions import generate_texts
from fusion_captioner.metrics.answers import answer_scores
from fusion_captioner.metrics.caption_scores import score_captions
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.model_card import GENERATES_TEXT, CardText, TrainingRecord, public_name
from fusion_captioner.training.tasks.task import Task
from fusion_captioner.training.trainer import FusionCaptionerTrainer, check_caption_length, keep_generation_settings
from fusion_captioner.training.training_arguments import FusionCaptionerTrainingArguments

# Modalities that evaluation hides, by the name of the setting, which is a prefix of its scores; first nothing is
# hidden.
QUESTION_SETTINGS: dict[str, Collection[str]] = {"": (), "question_only": ("image",)}
TEXT_SETTINGS: dict[str, Collection[str]] = {"": (), "image_only": ("text",), "text_only": ("image",)}

CHAT_USAGE = """\
content = [{{"type": "image", "path": "photo.jpg"}}, {{"type": "text", "text": "{text}"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
generated = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(generated, skip_special_tokens=True)[0])"""
ANSWER_CARD = CardText(
    pipeline_tag="visual-question-answering",
    tags=("image-text-to-text", "multimodal"),
    metrics={"exact_match": "exact_match", "token_f1": "f1"},
    auto_class=GENERATES_TEXT,
    about="A model that answers questions about an image in words, by cross-modal fusion",
    usage=CHAT_USAGE.format(text="what is it?"),
    limits="It always answers, even where the image does not show the answer, and often with the most common "
    "answer to such a\nquestion: compare the score of the question alone. It is no medical device: what it says about "
    "medical images is for\nresearch, and never for diagnosis or treatment.",
)
TEXT_CARD = CardText(
    pipeline_tag="image-text-to-text",
    tags=("image-to-text", "multimodal"),
    metrics={"BLEU-4": "bleu", "ROUGE-L": "rouge"},
    auto_class=GENERATES_TEXT,
    about="A model that writes a text about an image from a record, by cross-modal fusion",
    usage=CHAT_USAGE.format(text="sex F. age 60."),
    limits="It writes what is commonly written, fluently, even where the image does not show it. It is no "
    "medical device: what it\nwrites about medical images is for research, and never for diagnosis or treatment.",
)


@dataclass
class PromptedTrainingArguments(FusionCaptionerTrainingArguments):
    """
    [`FusionCaptionerTrainingArguments`] for answers and reports; the best checkpoint has the best exact match. The
    settings of generation apply to answers and captions.

    Raises:
        ValueError: the settings do not fit together; the message names the fields.
    """

    output_dir: str = field(default="runs/assistant", metadata={"help": "Folder of checkpoints and results."})
    metric_for_best_model: str | None = field(
        default="exact_match", metadata={"help": "Score that chooses the best checkpoint."}
    )
    generation_num_beams: int = field(default=1, metadata={"help": "Beams of evaluation; 1: greedy."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.predict_with_generate:
            raise ValueError(
                "`predict_with_generate` (False) leaves nothing to score; omit it, or set `eval_strategy` to 'no'."
            )


class PromptCollator(CaptionCollator):
    """[`CaptionCollator`] that can hide the images.

    Args:
        processor: a `FusionCaptionerProcessor`.
        without_images: the model whose `hidden_image` replaces every image; None: images are shown.
        skip_bad_images: leave out an image that cannot be decoded, with a warning, instead of raising.
    """

    def __init__(
        self,
        processor: Any,
        without_images: FusionCaptionerForConditionalGeneration | None = None,
        skip_bad_images: bool = False,
    ) -> None:
        super().__init__(processor, skip_bad_images=skip_bad_images)
        self.hidden_image = None if without_images is None else without_images.hidden_image(1).cpu()

    def _images(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], dict[str, torch.Tensor]]:
        if self.hidden_image is None:
            return super()._images(rows)
        return list(rows), {"image_hidden_states": self.hidden_image.expand(len(rows), -1, -1)}


class PromptedTrainer(FusionCaptionerTrainer):
    """
    [`FusionCaptionerTrainer`] of rows with prompts: the generated texts are scored as answers or as reports, and
    those of rows that ask for a caption separately as captions.

    Args:
        args (`PromptedTrainingArguments`).
        settings: the modalities that evaluation hides; one of the dicts above, or the same modalities always.
        asks: whether prompts are questions, scored by exact match and token-F1, or else by BLEU and ROUGE-L.
        The rest as for `FusionCaptionerTrainer`.
    """

    args: PromptedTrainingArguments

    def __init__(self, *arguments: Any, settings: Mapping[str, Collection[str]], asks: bool, **keywords: Any) -> None:
        self.card_text = ANSWER_CARD if asks else TEXT_CARD  # whose metrics break ties of early stopping
        super().__init__(*arguments, **keywords)
        self.settings = settings
        self.asks = asks
        self.scores_by_setting: dict[str, dict[str, float]] = {}
        self.evaluated_texts: list[dict[str, str]] = []

    def _score(self, dataset: CaptionDataset) -> dict[str, float]:
        kinds, references = dataset.rows["kind"], dataset.rows["captions"]
        asked = [number for number, kind in enumerate(kinds) if kind != CAPTION]
        found: dict[str, dict[str, float]] = {}
        for setting, hidden in self.settings.items():
            texts = self._generate(dataset, asked, hidden)
            generated = list(texts.values())
            if self.asks:
                right = [references[number][0] for number in texts]
                found[setting] = answer_scores(generated, right, [kinds[number] for number in texts])
            else:
                of_texts = score_captions(
                    generated,
                    [references[number] for number in texts],
                    metrics=("BLEU", "ROUGE-L"),
                    tokenizer=self.metric_tokenizer,
                )
                self.score_signature = of_texts.pop("signature")
                found[setting] = of_texts
            if not setting:
                prompts = dataset.rows["prompt"]
                self.evaluated_texts = [
                    {"prompt": prompts[number], "generated": text, "right": references[number][0]}
                    for number, text in texts.items()
                ]
        if len(asked) < len(kinds):
            captions = self._generate(dataset, [number for number, kind in enumerate(kinds) if kind == CAPTION])
            of_captions = score_captions(
                list(captions.values()),
                [references[number] for number in captions],
                tokenizer=self.metric_tokenizer,
            )
            self.score_signature = of_captions.pop("signature")
            found["captions"] = of_captions
        self.scores_by_setting = found
        return {
            f"{setting}_{name}" if setting else name: value
            for setting, scores in found.items()
            for name, value in scores.items()
        }

    def _generate(
        self, dataset: CaptionDataset, numbers: Sequence[int], hidden: Collection[str] = ()
    ) -> dict[int, str]:
        """Generated texts by the number of the row, with the settings of the model's `generate`."""
        rows = dataset.rows.select(numbers)
        collator = self.data_collator
        texts = generate_texts(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            rows,
            [""] * len(rows) if "text" in hidden else rows["prompt"],
            dataset.features,
            hides_images="image" in hidden,
            batch_size=self.args.eval_batch_size,
            show_progress=not self.args.disable_tqdm and self.is_world_process_zero(),
            skip_bad_images=isinstance(collator, CaptionCollator) and collator.skip_bad_images,
        )
        return {numbers[place]: text for place, text in texts.items()}


class PromptedTask(Task[PromptDataArguments]):
    """See [`~fusion_captioner.training.tasks.task.Task`]."""

    model_class = FusionCaptionerForConditionalGeneration
    data_arguments = PromptDataArguments
    training_arguments = PromptedTrainingArguments
    trained_to = "answer"

    def __init__(self, data: PromptDataArguments, config: FusionCaptionerConfig | None = None) -> None:
        super().__init__(data, config)
        self.max_text_length = data.max_text_length

    def load_run(self) -> dict[str, Any]:
        splits = self.data.limits
        loaded = load_prompted_texts(self.data, splits, learned=self.data.train_split)
        if self.data.caption_source is not None:
            captions = load_captions(self.data, splits)
            loaded |= {split: datasets.concatenate_datasets([loaded[split], rows]) for split, rows in captions.items()}
        return {role: loaded[split] for role, split in self.data.roles.items()}

    def load_split(self, split: str, limit: int | None) -> datasets.Dataset:
        return load_prompted_texts(self.data, {split: limit})[split]

    def texts(self, rows: datasets.Dataset) -> Iterator[str]:
        yield from (prompt for prompt in render_prompts(rows["turns"]) if prompt)
        yield from captions_of(rows)

    def whole_texts(self, rows: datasets.Dataset) -> Iterator[str]:
        for prompt, texts in zip(render_prompts(rows["turns"]), rows["captions"], strict=True):
            yield from (f"{prompt} {text}" for text in texts)

    def trainer(
        self,
        model: FusionCaptionerForConditionalGeneration,
        processor: FusionCaptionerProcessor,
        arguments: PromptedTrainingArguments,
        splits: Mapping[str, datasets.Dataset],
        features: Mapping[str, ImageFeatures],
    ) -> PromptedTrainer:
        parts = {}
        for role, rows in splits.items():
            prompts = render_prompts(rows["turns"], str(processor.chat_template))
            parts[role] = CaptionDataset(rows.add_column("prompt", prompts), 1, arguments.seed, features.get(role))
        rendered = parts["eval"].rows["prompt"] if "eval" in parts else []
        lengths = [len(row) for row in processor(text=rendered[:], padding=False)["input_ids"]] if rendered else []
        check_caption_length(model, arguments, max(lengths, default=1))
        if "train" in parts:
            keep_generation_settings(model, arguments)
        hidden = set(MODALITIES) - set(self.data.modalities)
        return PromptedTrainer(
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
            metric_tokenizer=self.data.metric_tokenizer,
        )

    def report(self, trainer: PromptedTrainer, rows: datasets.Dataset) -> dict[str, Any]:
        """The scores of each setting, and of captions; the number of rows, in all and of each kind."""
        kinds = [kind for kind in rows["kind"] if kind != CAPTION]
        counts: dict[str, Any] = {"questions" if self.data.asks else "texts": len(kinds)}
        counts |= {kind: kinds.count(kind) for kind in sorted(set(kinds) - {""})}
        names = {"text": "question", "image": "image"} if self.data.asks else {"image": "image", "text": "text"}
        everything = " and ".join(names[name] for name in names if name in self.data.modalities)
        return counts | {setting or everything: scores for setting, scores in trainer.scores_by_setting.items()}

    def generated(self, trainer: PromptedTrainer) -> tuple[str, list[dict[str, str]]] | None:
        return "eval_texts.jsonl", trainer.evaluated_texts

    def training_record(self) -> TrainingRecord:
        data, record = self.data, super().training_record()
        if data.caption_source is not None:
            record = replace(record, data=[public_name(data.source), public_name(data.caption_source)])
        if data.folds and data.eval_split is not None:
            held_out, whole = f"fold {data.fold} of {data.folds}", record.train_split
            evaluated = f"{held_out} of {data.train_split}"
            record = replace(record, train_split=f"{whole} without {held_out}", eval_split=evaluated)
        return record

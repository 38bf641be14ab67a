"""`FusionCaptionerTrainer`: trains a captioner, and scores the captions that it generates."""

import datasets

from fusion_captioner.data.caption_datasets import rows_of_language
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import CaptionCollator
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.evaluation.generated_captions import generate_captions, score_generated
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.training.base_trainer import BaseTrainer
from fusion_captioner.training.model_card import GENERATES_TEXT, CardText
from fusion_captioner.training.training_arguments import FusionCaptionerTrainingArguments

CAPTION_CARD = CardText(
    pipeline_tag="image-text-to-text",
    tags=("image-captioning",),
    metrics={"CIDEr": "cider", "BLEU-4": "bleu", "ROUGE-L": "rouge", "METEOR-exact-stem": "meteor"},
    auto_class=GENERATES_TEXT,
    about="An image captioner by cross-modal fusion",
    usage="""\
inputs = processor(images="photo.jpg", return_tensors="pt")
generated = model.generate(**inputs, num_beams=3)
print(processor.batch_decode(generated, skip_special_tokens=True)[0])""",
    limits="It describes what its training data describes, in the same words, and makes confident errors: "
    "counts, colours, text in\npictures and rare things are often wrong. Do not use it to identify people or where an "
    "error does harm.",
    task_type="image-to-text",
    task_name="Image captioning",
)


class FusionCaptionerTrainer(BaseTrainer):
    """
    [`BaseTrainer`] for `FusionCaptionerForConditionalGeneration`. Evaluation generates a caption for each row of
    `eval_dataset`, from its prompt alone, and scores it against the row's `captions`.

    Args:
        args (`FusionCaptionerTrainingArguments`).
        processing_class (`FusionCaptionerProcessor`): decodes generated tokens, and is saved with the model.
        train_dataset (`CaptionDataset` or `StreamedCaptionDataset`).
        eval_dataset (`CaptionDataset`).
        metric_tokenizer: tokenizer of the scores, of `metrics.TOKENIZERS`.
        The rest as for `Trainer`.
    """

    args: FusionCaptionerTrainingArguments
    model: FusionCaptionerForConditionalGeneration
    card_text = CAPTION_CARD

    def __init__(self, *arguments, metric_tokenizer: str = "auto", **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self.metric_tokenizer = metric_tokenizer
        self.evaluated_captions: dict[str, str] = {}
        self.scores: dict[str, float] = {}
        beams = self.args.generation_num_beams
        self.score_setting = f", {beams} beam{'s' * (beams > 1)}"

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training and not return_outputs:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def get_train_dataloader(self):
        if isinstance(self.data_collator, CaptionCollator) and isinstance(self.train_dataset, CaptionDataset):
            self.data_collator.data = self.train_dataset
        return super().get_train_dataloader()

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """The mean loss, and with `predict_with_generate` the scores of generated captions."""
        first_step = self.args.train_image_encoder_from_step
        unfrozen = first_step is not None and self.state.global_step >= first_step
        if unfrozen and isinstance(dataloader.dataset, CaptionDataset):
            # the cached features are those of the frozen encoder
            dataloader.dataset.stop_reading_features()
        with self.moving_average_weights():
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
            if self.args.predict_with_generate:
                self.scores = self._score(dataloader.dataset)
                metrics = output.metrics or {}
                metrics |= {f"{metric_key_prefix}_{name}": value for name, value in self.scores.items()}
                output = output._replace(metrics=metrics)
        return output

    def _score(self, dataset: CaptionDataset) -> dict[str, float]:
        """The scores; of several languages their means, and the scores of each language with its name behind them."""
        if "languages" not in dataset.rows.column_names:
            self.evaluated_captions, scores = self._caption_and_score(dataset.rows, dataset.features)
            return scores
        self.evaluated_captions, by_language = {}, {}
        for language in self.processing_class.languages:
            rows = rows_of_language(dataset.rows, language)
            if not len(rows):
                continue
            captions, by_language[language] = self._caption_and_score(rows, dataset.features, language)
            self.evaluated_captions |= {f"{language}/{image_id}": text for image_id, text in captions.items()}
        names = next(iter(by_language.values()))
        means = {name: sum(scores[name] for scores in by_language.values()) / len(by_language) for name in names}
        return means | {
            f"{name}_{language}": value for language, scores in by_language.items() for name, value in scores.items()
        }

    def _caption_and_score(
        self, rows: datasets.Dataset, features: ImageFeatures | None, language: str | None = None
    ) -> tuple[dict[str, str], dict[str, float]]:
        """The captions by `image_id`, and their scores."""
        captions = generate_captions(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            rows,
            features,
            language=language,
            batch_size=self.args.eval_batch_size,
            show_progress=not self.args.disable_tqdm and self.is_world_process_zero(),
            num_beams=self.args.generation_num_beams,
            length_penalty=self.args.generation_length_penalty,
            max_new_tokens=self.args.generation_max_new_tokens,
            no_repeat_ngram_size=self.args.generation_no_repeat_ngram,
            skip_bad_images=isinstance(self.data_collator, CaptionCollator) and self.data_collator.skip_bad_images,
        )
        scores = score_generated(captions, rows, self.metric_tokenizer)
        self.score_signature = scores.pop("signature")
        return captions, scores


def check_caption_length(
    model: FusionCaptionerForConditionalGeneration,
    training: FusionCaptionerTrainingArguments,
    longest_prompt: int = 1,
) -> None:
    """
    Args:
        longest_prompt: tokens of the longest prompt, BOS included.

    Raises:
        ValueError: prompts with captions of `generation_max_new_tokens` have more tokens than Transformer layers have
            positions, which otherwise fails after an epoch.
    """
    config = model.config
    layers = [name for name in ("text_encoder_type", "decoder_type") if getattr(config, name) == "transformer"]
    longest = longest_prompt - 1 + training.generation_max_new_tokens
    if layers and training.predict_with_generate and longest >= config.max_position_embeddings:
        prompt = "" if longest_prompt == 1 else f" after a prompt of {longest_prompt} tokens"
        raise ValueError(
            f"`training.generation_max_new_tokens` ({training.generation_max_new_tokens}){prompt} must be below "
            f"the model's `max_position_embeddings` ({config.max_position_embeddings}), since `{layers[0]}` is "
            "'transformer'."
        )


def keep_generation_settings(
    model: FusionCaptionerForConditionalGeneration, training: FusionCaptionerTrainingArguments
) -> None:
    """Make the settings of evaluation the defaults of the saved model's `generate`."""
    model.generation_config.update(
        num_beams=training.generation_num_beams,
        length_penalty=training.generation_length_penalty if training.generation_num_beams > 1 else 1.0,
        max_new_tokens=training.generation_max_new_tokens,
        no_repeat_ngram_size=training.generation_no_repeat_ngram or None,
    )

"""`FusionCaptionerTrainer`: transformers' `Trainer`, which scores generated captions and logs every loss term."""

from typing import Any

from huggingface_hub import ModelCard

from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import CaptionCollator
from fusion_captioner.evaluation.generated_captions import generate_captions, score_generated
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.training.head_trainer import HeadTrainer
from fusion_captioner.training.model_card import build_model_card
from fusion_captioner.training.training_arguments import FusionCaptionerTrainingArguments


class FusionCaptionerTrainer(HeadTrainer):
    """
    `Trainer` for `FusionCaptionerForConditionalGeneration`.

    Beside what `Trainer` does: each loss term is logged on its own (`loss_caption`, `loss_contrastive`, ...), the
    image encoder has its own learning rate and may be frozen for a while, an average of the weights can be kept, and
    evaluation generates a caption from the prompt of each row of `eval_dataset` alone and scores it against the
    row's `captions`.

    Args:
        args (`FusionCaptionerTrainingArguments`).
        processing_class (`FusionCaptionerProcessor`): turns generated tokens into text and is saved with the model.
        train_dataset (`CaptionDataset` or `StreamedCaptionDataset`).
        eval_dataset (`CaptionDataset`).
        The rest as for `Trainer`.
    """

    args: FusionCaptionerTrainingArguments
    model: FusionCaptionerForConditionalGeneration

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self.evaluated_captions: dict[str, str] = {}
        self.score_signature = ""
        if self.args.trains_image_encoder and isinstance(self.data_collator, CaptionCollator):
            self.data_collator.keep_image_ids = isinstance(self.train_dataset, CaptionDataset)

    def build_card(self, **metadata: Any) -> ModelCard:
        return build_model_card(self, **metadata)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training and not return_outputs:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _prepare_inputs(self, inputs):
        """`Trainer`'s, but with the images of a batch whose cached features are out of date: data loaders read ahead, so
        that some batches were made before the image encoder was unfrozen."""
        image_ids = inputs.pop("image_ids", None)
        data, collator = self.train_dataset, self.data_collator
        if (
            image_ids is not None
            and "image_hidden_states" in inputs
            and isinstance(data, CaptionDataset)
            and isinstance(collator, CaptionCollator)
            and not data.reads_features
        ):
            del inputs["image_hidden_states"]
            inputs |= collator.read_images(data.images_of(image_ids))[1]
        return super()._prepare_inputs(inputs)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """The mean loss, and with `predict_with_generate` the scores of generated captions."""
        first_step = self.args.train_image_encoder_from_step
        unfrozen = first_step is not None and self.state.global_step >= first_step
        if unfrozen and isinstance(dataloader.dataset, CaptionDataset):
            # their cached features are those of the frozen encoder
            dataloader.dataset.stop_reading_features()
        with self.averaged_weights():
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
            if self.args.predict_with_generate:
                scores = self._score(dataloader.dataset)
                metrics = output.metrics or {}
                metrics |= {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
                output = output._replace(metrics=metrics)
        return output

    def _score(self, dataset: CaptionDataset) -> dict[str, float]:
        captions = generate_captions(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            dataset.rows,
            dataset.features if dataset.reads_features else None,
            batch_size=self.args.eval_batch_size,
            show_progress=not self.args.disable_tqdm and self.is_world_process_zero(),
            num_beams=self.args.generation_num_beams,
            length_penalty=self.args.generation_length_penalty,
            max_new_tokens=self.args.generation_max_new_tokens,
            skip_bad_images=isinstance(self.data_collator, CaptionCollator) and self.data_collator.skip_bad_images,
        )
        self.evaluated_captions = captions
        scores = score_generated(captions, dataset.rows)
        self.score_signature = scores.pop("signature")
        return scores

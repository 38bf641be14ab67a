"""`FusionCaptionerTrainer`: transformers' `Trainer`, which scores generated captions and logs every loss term."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.callbacks import UnfreezeImageEncoder, WeightAverage
from fusion_captioner.training.caption_sampling import CaptionDataset, SetCaptionEpoch
from fusion_captioner.training.collating import CaptionCollator
from fusion_captioner.training.evaluation import generate_captions, score_generated
from fusion_captioner.training.model_card import TrainingRecord, build_model_card
from fusion_captioner.training.training_arguments import FusionCaptionerTrainingArguments


class FusionCaptionerTrainer(Trainer):
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
    processing_class: FusionCaptionerProcessor

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self._loss_terms: dict[str, torch.Tensor] = {}
        self._first_step_of_terms = 0
        self.evaluated_captions: dict[str, str] = {}
        self.score_signature = ""
        self.training_record = TrainingRecord()
        if self.args.trains_image_encoder and isinstance(self.data_collator, CaptionCollator):
            self.data_collator.keep_image_ids = isinstance(self.train_dataset, CaptionDataset)
        self.add_callback(SetCaptionEpoch())
        self.add_callback(UnfreezeImageEncoder(self.args.train_image_encoder_from_step))
        self.weight_average = WeightAverage(self.args.ema_decay) if self.args.ema_decay else None
        if self.weight_average is not None:
            self.add_callback(self.weight_average)
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """`Trainer`'s optimiser; where the image encoder is trained, its weights are groups of their own."""
        if self.optimizer is not None or not self.args.trains_image_encoder:
            return super().create_optimizer(model)
        # weights that are unfrozen later must be known to the optimiser now; without a gradient they are left alone
        self.model.unfreeze_image_encoder()
        optimizer = super().create_optimizer(model)
        encoder = {id(weight) for name, weight in self.model.named_parameters() if "image_encoder." in name}
        rate = self.args.image_encoder_learning_rate
        groups = []
        for group in optimizer.param_groups:
            of_encoder = [weight for weight in group["params"] if id(weight) in encoder]
            others = [weight for weight in group["params"] if id(weight) not in encoder]
            groups.append({**group, "params": others})
            if of_encoder:
                groups.append({**group, "params": of_encoder, "lr": group["lr"] if rate is None else rate})
        optimizer.param_groups.clear()
        for group in groups:
            optimizer.add_param_group(group)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training and not return_outputs:
            inputs = {**inputs, "skip_logits": True}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            if num_items_in_batch is None:
                weight = 1 / self.current_gradient_accumulation_steps
            else:
                weight = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            self._count_terms(outputs.loss_terms, weight)
        return (loss, outputs) if return_outputs else loss

    def _count_terms(self, terms: dict[str, torch.Tensor], weight: float) -> None:
        """Take note of loss terms for the next line of the log, as for the loss itself: shares of a step, to be summed
        over its batches and averaged over processes."""
        if not self._loss_terms:
            self._first_step_of_terms = self.state.global_step
        for name, term in terms.items():
            self._loss_terms[name] = self._loss_terms.get(name, 0.0) + weight * term.detach()

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._loss_terms:
            steps = self.state.global_step - self._first_step_of_terms
            for name, total in self._loss_terms.items():
                logs[f"loss_{name}"] = round(float(self.accelerator.gather(total / steps).mean()), 4)
            self._loss_terms = {}
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """The mean loss, and with `predict_with_generate` the scores of generated captions."""
        first_step = self.args.train_image_encoder_from_step
        unfrozen = first_step is not None and self.state.global_step >= first_step
        if unfrozen and isinstance(dataloader.dataset, CaptionDataset):
            # their cached features are those of the frozen encoder
            dataloader.dataset.stop_reading_features()
        average = self.weight_average.applied_to(self.model) if self.weight_average else nullcontext()
        with average:
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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        average = self.weight_average.applied_to(self.model) if self.weight_average else nullcontext()
        with average:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # a pickle that nothing reads; folders that are published hold none
        Path(str(output_dir or self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """
        Writes `README.md` into `args.output_dir`: the card of `model_card.py`, with `training_record` and the scores.

        Args:
            language, license, tags, model_name: of the model.
            finetuned_from: the model that training went on from.
            dataset: name of the data in place of `training_record.data`.
            dataset_tags: Hub names of the data, where they differ from `dataset`.
            tasks, dataset_args: refused; the task and the splits are known.
        """
        if tasks is not None or dataset_args is not None:
            raise ValueError(
                "`tasks` and `dataset_args` are not for this card: the task is image-text-to-text, and the splits are "
                "those of `trainer.training_record`; leave them out."
            )
        if self.is_world_process_zero():
            card = build_model_card(
                self,
                name=model_name,
                data=dataset,
                hub_data=dataset_tags,
                language=language,
                license=license,
                tags=tags,
                base_model=finetuned_from,
            )
            card.save(Path(str(self.args.output_dir), "README.md"))

    def _save_checkpoint(self, model, trial) -> None:
        if self.weight_average is not None and self.args.should_save:
            folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            self.weight_average.save_training_weights(folder, self.model)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.weight_average is not None:
            self.weight_average.resume(resume_from_checkpoint, self.model)


def newest_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The newest checkpoint of a run that was written to its end, or `None`.

    `trainer_state.json` is the last file that `Trainer` writes of a checkpoint: a folder without it, or with a part of
    it, is what a kill left behind.
    """
    complete: dict[int, str] = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if step.isdigit() and _is_json(folder / "trainer_state.json"):
            complete[int(step)] = str(folder)
    return complete[max(complete)] if complete else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True

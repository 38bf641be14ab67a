"""`BaseTrainer`: what the trainers of all tasks add to transformers' `Trainer`."""

import math
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from huggingface_hub import ModelCard
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from fusion_captioner.checkpoints.loading import check_finite
from fusion_captioner.data.caption_sampling import SetCaptionEpoch
from fusion_captioner.data.collating import CaptionCollator, ImageCollator
from fusion_captioner.files import write_json
from fusion_captioner.fingerprints import write_digests
from fusion_captioner.image_encoder import ImageEncoder
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerPreTrainedModel
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.callbacks import MovingAverage, StopEarly, UnfreezeImageEncoder, WarnOfWarmUp, wins_tie
from fusion_captioner.training.model_card import CardText, TrainedModel, TrainingRecord, build_model_card
from fusion_captioner.training.training_arguments import BaseTrainingArguments


class BaseTrainer(Trainer):
    """
    `Trainer` for a model of any task; the trainers of the tasks inherit from it.

    In addition to `Trainer`: each loss term of a model that has several is logged on its own (`loss_contrastive`,
    ...), the image encoder has its own learning rate and can be frozen for the first steps, an exponential moving
    average of the weights can be kept, evaluated and saved, and no pickle is saved with a model.

    Args:
        args (`BaseTrainingArguments`).
        processing_class (`FusionCaptionerProcessor`): is saved with the model.
        The rest as for `Trainer`.

    Attributes:
        card_text: the part of the model card that the task writes.
        training_record: the origin of the model, for the card.
        score_setting, score_signature: how the last evaluation scored, for the card.
    """

    args: BaseTrainingArguments
    card_text: CardText
    model: FusionCaptionerPreTrainedModel
    processing_class: FusionCaptionerProcessor

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self._loss_terms: dict[str, torch.Tensor] = {}
        self._first_step_of_terms = 0
        self._has_missing_names = False
        # ids of the images of the optimiser step in progress, which may take several batches
        self._batches: list[str] = []
        self._step_of_batches = -1
        self.training_record = TrainingRecord()
        self.score_setting = ""
        self.score_signature = ""
        self.add_callback(SetCaptionEpoch())
        self.add_callback(WarnOfWarmUp())
        self.add_callback(
            UnfreezeImageEncoder(self.args.train_image_encoder_from_step, **self.args.unfrozen_image_encoder)
        )
        self.moving_average = MovingAverage(self.args.ema_decay) if self.args.ema_decay else None
        if self.moving_average is not None:
            self.add_callback(self.moving_average)
        if self.args.early_stopping_patience is not None:
            self.add_callback(StopEarly(self.args.early_stopping_patience, self._further_scores()))

    def moving_average_weights(self):
        """A context in which the model has the moving average of its weights, where `ema_decay` is set."""
        return self.moving_average.applied_to(self.model) if self.moving_average else nullcontext()

    def build_card(self, **metadata: Any) -> ModelCard:
        """The model card; `metadata` as in [`~fusion_captioner.training.model_card.build_model_card`]."""
        folder = Path(str(self.args.output_dir)).resolve().name
        model = TrainedModel(
            repository=self.hub_model_id or self.args.hub_model_id or folder,
            config=self.model.config,
            state=self.state,
            is_best=self.args.load_best_model_at_end,
            record=self.training_record,
            score_setting=self.score_setting,
            score_signature=self.score_signature,
        )
        return build_model_card(model, self.card_text, **metadata)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """`Trainer`'s optimiser; where the image encoder is trained, its weights are separate groups: one a layer,
        where the learning rate decays from layer to layer."""
        if self.optimizer is not None or not self.args.trains_image_encoder:
            return super().create_optimizer(model)
        # the optimiser must hold the weights that are unfrozen later; it skips weights without a gradient
        self.model.unfreeze_image_encoder(**self.args.unfrozen_image_encoder)
        optimizer = super().create_optimizer(model)
        rates = self._image_encoder_rates()
        groups = []
        for group in optimizer.param_groups:
            groups.append({**group, "params": [weight for weight in group["params"] if id(weight) not in rates]})
            by_rate: dict[float, list[torch.nn.Parameter]] = {}
            for weight in group["params"]:
                if id(weight) in rates:
                    by_rate.setdefault(rates[id(weight)], []).append(weight)
            groups += [{**group, "params": weights, "lr": rate} for rate, weights in by_rate.items()]
        optimizer.param_groups.clear()
        for group in groups:
            optimizer.add_param_group(group)
        return optimizer

    def get_decay_parameter_names(self, model) -> list[str]:
        """`Trainer`'s, without the scales of the image encoder's normalisation layers: backbones have more names for
        these than it knows."""
        dimensions = {name: weight.dim() for name, weight in model.named_parameters()}
        names = super().get_decay_parameter_names(model)
        return [name for name in names if "image_encoder." not in name or dimensions[name] > 1]

    def _image_encoder_rates(self) -> dict[int, float]:
        """The learning rate of each weight of the image encoder, by the weight's `id`."""
        rate, decay = self.args.image_encoder_learning_rate, self.args.image_encoder_layer_decay
        encoder: ImageEncoder = self.model.base_model.image_encoder  # type: ignore[assignment]
        depths = encoder.depths()
        return {
            id(weight): (self.args.learning_rate if rate is None else rate)
            * decay ** (encoder.num_layers + 1 - depths[name.rpartition(".")[0]])
            for name, weight in encoder.backbone.named_parameters()
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {**inputs, "return_dict": True}  # whatever the config says
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training and "loss_terms" in outputs:
            if num_items_in_batch is None:
                weight = 1 / self.current_gradient_accumulation_steps
            else:
                weight = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            self._count_terms(outputs.loss_terms, weight)
        return (loss, outputs) if return_outputs else loss

    def compute_loss_context_manager(self):
        """`Trainer`'s, and autocast for what a loss computes outside of the model's `forward`. Within it a weight is
        cast once, and not at every call."""
        contexts = ExitStack()
        contexts.enter_context(super().compute_loss_context_manager())
        contexts.enter_context(self.accelerator.autocast())
        return contexts

    def get_train_dataloader(self):
        if isinstance(self.data_collator, ImageCollator):
            self.data_collator.keeps_image_ids = True  # to name the images of a batch
        return super().get_train_dataloader()

    def _prepare_inputs(self, inputs):
        if isinstance(self.data_collator, CaptionCollator):
            inputs = self.data_collator.refresh(inputs)
        return super()._prepare_inputs({name: value for name, value in inputs.items() if name != "image_ids"})

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """
        Raises:
            ValueError: the loss is not finite; see [`_stop`].
        """
        if self._step_of_batches != self.state.global_step:
            self._step_of_batches, self._batches = self.state.global_step, []
        self._batches += self._names_of_images(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        # in several processes all stop, and none waits for the others
        if not self.accelerator.gather(torch.isfinite(loss).all().reshape(1)).all():
            self._stop(f"the loss of step {self.state.global_step + 1} is {float(loss)}")
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """
        Raises:
            ValueError: the gradient is not finite, and no scaler of float16 skips the step; see [`_stop`].
        """
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None and not math.isfinite(grad_norm):
            self._stop(f"the norm of the gradient of step {self.state.global_step + 1} is {float(grad_norm)}")
        return grad_norm

    def _names_of_images(self, inputs: Mapping[str, Any]) -> list[str]:
        """Ids of the images of a batch, or where it has none the numbers of its rows."""
        if "image_ids" in inputs:
            return list(inputs["image_ids"])
        numbers: list[int] = inputs["rows"].tolist() if "rows" in inputs else []
        rows: Any = getattr(self.train_dataset, "rows", None)
        if numbers and rows is not None and "image_id" in rows.column_names:
            return rows.select(numbers)["image_id"][:]
        return [f"row {number}" for number in numbers]

    def _stop(self, reason: str) -> None:
        """
        End training before the optimiser step that would spread values that are not finite to all weights. The state
        before the step is saved in `non_finite/` of the output folder, with the images of the step in `state.json`.

        Raises:
            ValueError: always.
        """
        folder = Path(str(self.args.output_dir), "non_finite")
        images = gather_object(self._batches)
        if self.is_world_process_zero():
            self._save(str(folder))
            self.state.save_to_json(str(folder / "trainer_state.json"))
            state = {"step": self.state.global_step + 1, "epoch": self.state.epoch, "reason": reason, "batch": images}
            write_json(folder / "state.json", state)
        self.accelerator.wait_for_everyone()
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        shown = ", ".join(images[:8]) + (f" and {len(images) - 8} more" if len(images) > 8 else "")
        raise ValueError(
            f"{reason}, and training stops; the state before it is in {folder}. Batch: {shown or 'unknown'}. Lower "
            "`training.learning_rate`, or look for bad examples."
        )

    def _count_terms(self, terms: dict[str, torch.Tensor], weight: float) -> None:
        """Add loss terms to the next line of the log, as `Trainer` does with the loss: shares of a step, summed over
        its batches and averaged over processes."""
        if not self._loss_terms:
            self._first_step_of_terms = self.state.global_step
        for name, term in terms.items():
            self._loss_terms[name] = self._loss_terms.get(name, 0.0) + weight * term.detach()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._loss_terms:
            steps = self.state.global_step - self._first_step_of_terms
            for name, total in self._loss_terms.items():
                logs[f"loss_{name}"] = round(float(self.accelerator.gather(total / steps).mean()), 4)
            self._loss_terms = {}
        super().log(logs, start_time)

    def _further_scores(self) -> list[str]:
        """Further scores that choose the best checkpoint when the first one is equal; higher is better."""
        chosen = str(self.args.metric_for_best_model).removeprefix("eval_")
        return [f"eval_{name}" for name in self.card_text.metrics if name not in (chosen, "mae")]

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        metric = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
        if self.args.greater_is_better and wins_tie(metrics, self.state, metric, self._further_scores()):
            self.state.best_metric = None  # so that an equal score is a new best one
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError as error:
            # a misspelt name is wrong input, and not a fault of the program
            scores = ", ".join(name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
            raise ValueError(
                f"`training.metric_for_best_model` ({self.args.metric_for_best_model!r}) is no score of this task; "
                f"there are {scores}."
            ) from error

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # tied weights are saved once, and are not missing
        tied = self.model.all_tied_weights_keys
        missing = [name for name in load_result.missing_keys if name not in tied]
        self._has_missing_names = bool(missing) and isinstance(self.model, FusionCaptionerPreTrainedModel)
        if not self._has_missing_names:
            super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def _load_renamed_weights(self, folder: str | Path) -> None:
        """
        Load the weights of a checkpoint again where `Trainer` did not find some of them: `save_pretrained` writes the
        weights of some image encoders (ViT, DeiT, BEiT, ...) under older names, that only `from_pretrained` knows.

        Raises:
            ValueError: the checkpoint lacks weights under any name.
        """
        if not self._has_missing_names:
            return
        self._has_missing_names = False
        model_class: Any = type(self.model)
        saved, found = model_class.from_pretrained(folder, config=self.model.config, output_loading_info=True)
        if found["missing_keys"]:
            raise ValueError(
                f"{folder}: the checkpoint lacks {', '.join(sorted(found['missing_keys']))}; train again."
            )
        self.model.load_state_dict(saved.state_dict())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        check_finite(self.model, f"step {self.state.global_step}")
        with self.moving_average_weights():
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # a pickle that nothing reads; published folders have none
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
        Write the model card to `README.md` in `args.output_dir`.

        Args:
            language, license, tags, model_name: metadata of the model.
            finetuned_from: the model that training started from.
            dataset: name of the data instead of `training_record.data`.
            dataset_tags: Hub names of the data, where they differ from `dataset`.
            tasks, dataset_args: refused; the task and the splits are known already.
        """
        if tasks is not None or dataset_args is not None:
            raise ValueError(
                "`tasks` and `dataset_args` cannot be set: the card takes the task from the model and the splits from "
                "`trainer.training_record`; omit them."
            )
        if self.is_world_process_zero():
            card = self.build_card(
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
        if self.moving_average is not None and self.args.should_save:
            folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            self.moving_average.save_training_weights(folder, self.model)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes its own random state
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save and folder.is_dir():
            write_digests(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_renamed_weights(resume_from_checkpoint)
        if self.moving_average is not None:
            self.moving_average.resume(resume_from_checkpoint, self.model)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_renamed_weights(str(self.state.best_model_checkpoint))

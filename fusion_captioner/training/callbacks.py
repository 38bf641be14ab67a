"""Callbacks of every training: unfreezing of the image encoder, the moving average of the weights, a warning of a
warm-up that is too long."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState

from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerPreTrainedModel

logger = logging.getLogger(__name__)


class UnfreezeImageEncoder(TrainerCallback):
    """
    Freezes the image encoder until an optimiser step is reached; a resumed run has it in the state of its step.
    From that step on the training data gives images, since cached features are those of the frozen encoder.

    Args:
        from_step (`int`, *optional*): the first step that trains it; `None`: it is never trained.
        settings: of [`~fusion_captioner.FusionCaptionerPreTrainedModel.unfreeze_image_encoder`].
    """

    def __init__(self, from_step: int | None, **settings: Any) -> None:
        self.from_step = from_step
        self.settings = settings

    def _apply(self, model: FusionCaptionerPreTrainedModel, step: int, train_data: Dataset) -> None:
        if self.from_step is not None and step >= self.from_step:
            model.unfreeze_image_encoder(**self.settings)
            if isinstance(train_data, CaptionDataset):
                train_data.stop_reading_features()
        else:
            model.freeze_image_encoder()

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        self._apply(model, state.global_step, train_dataloader.dataset)

    def on_step_end(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        if state.global_step == self.from_step:
            self._apply(model, state.global_step, train_dataloader.dataset)


class WarnOfWarmUp(TrainerCallback):
    """Warns when a run ends before its learning rate has risen: it hardly learns, and looks like a fault."""

    def on_train_begin(self, args, state, control, **kwargs):
        if (warm_up := args.get_warmup_steps(state.max_steps)) >= state.max_steps:
            logger.warning(
                "the learning rate rises for %d steps, and training has %d: hardly anything is learned; set "
                "`training.warmup_steps` lower",
                *(warm_up, state.max_steps),
            )


class MovingAverage(TrainerCallback):
    """
    Exponential moving average (EMA) of the trained weights (Polyak & Juditsky, 1992), with a smaller decay in the
    first steps. The average is evaluated and saved in `model.safetensors` of a checkpoint; the weights that training
    continues with are saved in `training_weights.safetensors` of the same folder.

    The mean of several trained models is another thing: see `fusion_captioner.checkpoints.averaging`.

    Args:
        decay (`float`): share of the average that is kept at each step, such as 0.999.
    """

    FILE = "training_weights.safetensors"

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not self.average:
            self.average = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        torch._foreach_lerp_(
            [self.average[name] for name in trained], [w.detach() for w in trained.values()], 1 - decay
        )

    def on_train_end(self, args, state, control, model=None, **kwargs):
        """From here on the model has the averaged weights: of the best checkpoint, if it was loaded, or the last."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._copy(self.average, model)
        self.average = {}

    @contextmanager
    def applied_to(self, model: nn.Module):
        """A context in which `model` has the averaged weights."""
        if not self.average:
            yield
            return
        trained = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self._copy(self.average, model)
        try:
            yield
        finally:
            self._copy(trained, model)

    @staticmethod
    @torch.no_grad()
    def _copy(weights: dict[str, torch.Tensor], model: nn.Module) -> None:
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])

    def save_training_weights(self, folder: str | Path, model: nn.Module) -> None:
        """Write the weights that training continues with."""
        # `named_parameters` has tied weights once, so that every tensor is written once
        save_file(
            {name: weight.detach().contiguous() for name, weight in model.named_parameters()}, Path(folder) / self.FILE
        )

    def resume(self, folder: str | Path, model: nn.Module) -> None:
        """`model` was loaded from a checkpoint and holds the average: take it, and load the weights that are
        trained."""
        path = Path(folder) / self.FILE
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: this checkpoint was not made with `ema_decay`; set it to 0.")
        self.average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self._copy(load_file(path), model)


def wins_tie(
    metrics: Mapping[str, float], state: TrainerState, metric: str, others: Sequence[str], later_wins: bool = True
) -> bool:
    """
    Whether an evaluation whose score equals the best one is better after all: by the first of the other scores that
    differs, then by the loss. CIDEr is 0 as long as captions share no words with their references: training must not
    stop, or keep its first checkpoint, for that.

    Args:
        metrics: the evaluation.
        state: holds the best score, and all evaluations before.
        metric: name of the score that chooses, with its prefix `eval_`.
        others: names of further scores with their prefix, of which higher is better.
        later_wins: the result if all scores and the loss are equal, too.
    """
    if state.best_metric is None or metrics.get(metric) != state.best_metric:
        return False
    rows = [row for row in state.log_history if row.get(metric) == state.best_metric]
    before = [row for row in rows if row["step"] < state.global_step]
    best = next((row for row in before if row["step"] == state.best_global_step), before[-1] if before else None)
    if best is None:
        return False
    for name in others:
        if name in metrics and name in best and metrics[name] != best[name]:
            return metrics[name] > best[name]
    if "eval_loss" in metrics and "eval_loss" in best and metrics["eval_loss"] != best["eval_loss"]:
        return metrics["eval_loss"] < best["eval_loss"]
    return later_wins


class StopEarly(EarlyStoppingCallback):
    """transformers' early stopping, which also counts an evaluation as better that wins a tie by another score.
    An evaluation that equals the best one in everything is not better: a run that never changes ends.

    Args:
        patience: evaluations without a better one before training stops.
        others: names of further scores, as for `wins_tie`.
    """

    def __init__(self, patience: int, others: Sequence[str]) -> None:
        super().__init__(patience)
        self.others = others

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        metric = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        if args.greater_is_better and wins_tie(metrics or {}, state, metric, self.others, later_wins=False):
            self.early_stopping_patience_counter = 0
            return
        super().on_evaluate(args, state, control, metrics, **kwargs)

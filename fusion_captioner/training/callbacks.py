"""What happens beside the training loop: the image encoder is unfrozen, an average of the weights is kept, a warm-up that
is too long is told."""

import logging
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerPreTrainedModel

logger = logging.getLogger(__name__)


class UnfreezeImageEncoder(TrainerCallback):
    """
    Freezes the image encoder until an optimiser step is reached; a resumed run finds it as the broken one left it.
    From that step on the training data gives images, as cached features are those of the frozen encoder.

    Args:
        from_step (`int`, *optional*): the first step that trains it; `None`: none does.
        fix_batch_norm (`bool`): whether its BatchNorm stays in evaluation mode all the same.
    """

    def __init__(self, from_step: int | None, fix_batch_norm: bool = False) -> None:
        self.from_step = from_step
        self.fix_batch_norm = fix_batch_norm

    def _apply(self, model: FusionCaptionerPreTrainedModel, step: int, train_data: Dataset) -> None:
        if self.from_step is not None and step >= self.from_step:
            model.unfreeze_image_encoder(self.fix_batch_norm)
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
    """Says where a run ends before its learning rate has risen: it hardly learns, and looks as if it were wrong."""

    def on_train_begin(self, args, state, control, **kwargs):
        if (warm_up := args.get_warmup_steps(state.max_steps)) >= state.max_steps:
            logger.warning(
                "the learning rate rises for %d steps, and training has %d: hardly anything is learned; set "
                "`training.warmup_steps` lower",
                *(warm_up, state.max_steps),
            )


class WeightAverage(TrainerCallback):
    """
    Exponential moving average of the trained weights (Polyak & Juditsky, 1992), warmed up so that the first steps
    do not weigh. It is what evaluation sees and what `model.safetensors` of a checkpoint holds; the weights that
    training goes on with lie beside it, in `training_weights.safetensors`.

    Args:
        decay (`float`): share of the average kept at each step, such as 0.999.
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
        """From here on the model is the average: that of the best checkpoint, if it was loaded, or the last."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._copy(self.average, model)
        self.average = {}

    @contextmanager
    def applied_to(self, model: nn.Module):
        """Within it, `model` has the averaged weights."""
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
        """Write the weights that training goes on with."""
        # tied weights appear once among the parameters, so every tensor is written once
        save_file(
            {name: weight.detach().contiguous() for name, weight in model.named_parameters()}, Path(folder) / self.FILE
        )

    def resume(self, folder: str | Path, model: nn.Module) -> None:
        """After `model` was loaded from a checkpoint: what it holds is the average; training goes on beside it."""
        path = Path(folder) / self.FILE
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: this checkpoint was not made with `ema_decay`; set it to 0.")
        self.average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self._copy(load_file(path), model)

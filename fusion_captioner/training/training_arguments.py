"""The section `training`: settings of every training run, and those of captioning."""

from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy

from fusion_captioner.hardware import faster_dtype


@dataclass
class BaseTrainingArguments(TrainingArguments):
    """
    transformers' `TrainingArguments`, with settings for the training of the image encoder, the moving average of the
    weights, and early stopping. Some defaults differ: evaluation and checkpoints once per epoch, a cosine schedule.

    Raises:
        ValueError: the settings do not fit together; the message names the fields.
    """

    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints that are kept, in addition to the best."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate's decay."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log."})
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "Only `end`: push when all is done."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Off: the collator chooses the columns."})

    bf16: bool | Literal["auto"] = field(  # type: ignore[assignment]  # `__post_init__` makes it a truth value
        default=False,
        metadata={
            "help": "Matrix products in bfloat16, weights and the optimiser's states in float32; `auto`: where the "
            "machine has bfloat16 in hardware and is faster with it."
        },
    )
    image_encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the image encoder; by default that of the rest."}
    )
    image_encoder_layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "Factor on the image encoder's learning rate from each of its layers to the one before it (Clark "
            "et al., 2020): the first layers know what all pictures have in common, and change least."
        },
    )
    frozen_image_encoder_layers: int = field(
        default=0,
        metadata={"help": "So many of the first layers are not trained when the image encoder is; this saves time."},
    )
    train_image_encoder_from_step: int | None = field(
        default=None,
        metadata={"help": "Optimiser step at which the image encoder is unfrozen; 0: from the start; unset: never."},
    )
    fix_batch_norm: bool = field(
        default=False,
        metadata={
            "help": "Keep the statistics of a pretrained image encoder's BatchNorm while it is trained: the "
            "statistics of a small batch differ from those that the other layers were trained with."
        },
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Decay of the exponential moving average of the weights, which is evaluated and saved; 0: none."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better score before training stops; unset: never."}
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            # without this `bf16` is refused on a CPU
            self.use_cpu = True
        if self.bf16 == "auto":
            self.bf16 = not self.fp16 and faster_dtype() == torch.bfloat16
        super().__post_init__()
        accelerator_config = cast(AcceleratorConfig, self.accelerator_config)
        if accelerator_config.dispatch_batches is None:
            # By default the first process makes all batches of a stream and distributes their rows. But an image has
            # one row of pixels and several of captions, and batches differ in length: each process makes its own
            # batches.
            accelerator_config.dispatch_batches = False
        if self.train_image_encoder_from_step is not None and self.train_image_encoder_from_step < 0:
            raise ValueError(
                f"`train_image_encoder_from_step` ({self.train_image_encoder_from_step}) must be a step, 0 or later."
            )
        if not 0 < self.image_encoder_layer_decay <= 1:
            raise ValueError(
                f"`image_encoder_layer_decay` ({self.image_encoder_layer_decay}) must be above 0 and at most 1 (off), "
                "such as 0.85."
            )
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError(
                f"`early_stopping_patience` ({self.early_stopping_patience}) counts evaluations, and `eval_strategy` "
                "is 'no'; unset it, or evaluate."
            )
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError(
                f"`hub_strategy` ({HubStrategy(self.hub_strategy).value!r}) would publish the files that `Trainer` "
                "resumes from, which are pickles; set it to 'end'."
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` ({self.ema_decay}) must be at least 0 (off) and below 1, such as 0.999.")

    @property
    def computes_in(self) -> str:
        """The type of the matrix products in training."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    @property
    def trains_image_encoder(self) -> bool:
        """Whether the image encoder is trained at any step of the run."""
        return self.train_image_encoder_from_step is not None

    @property
    def unfrozen_image_encoder(self) -> dict[str, Any]:
        """How the image encoder is trained; see [`unfreeze_image_encoder`]."""
        return {"fix_batch_norm": self.fix_batch_norm, "num_frozen_layers": self.frozen_image_encoder_layers}


@dataclass
class FusionCaptionerTrainingArguments(BaseTrainingArguments):
    """
    [`BaseTrainingArguments`] for captioning, with the settings of generation in evaluation; the best checkpoint has
    the best CIDEr.

    Raises:
        ValueError: the settings do not fit together; the message names the fields.
    """

    output_dir: str = field(default="runs/captioner", metadata={"help": "Folder of checkpoints and results."})
    metric_for_best_model: str | None = field(
        default="CIDEr", metadata={"help": "Score that chooses the best; without generated captions the loss."}
    )
    predict_with_generate: bool = field(
        default=True, metadata={"help": "Whether evaluation generates captions and scores them."}
    )
    generation_num_beams: int = field(default=3, metadata={"help": "Beams of evaluation; 1: greedy."})
    generation_max_new_tokens: int = field(default=30, metadata={"help": "Longest caption of evaluation, in tokens."})
    generation_length_penalty: float = field(
        default=1.0,
        metadata={
            "help": "Exponent of the length by which beam search divides a caption's score; below 1 captions get "
            "shorter."
        },
    )
    generation_no_repeat_ngram: int = field(
        default=0, metadata={"help": "No sequence of so many tokens comes twice in a caption; 0: all may."}
    )

    def __post_init__(self) -> None:
        if not self.predict_with_generate and self.metric_for_best_model == "CIDEr":
            # no caption is generated and scored
            self.metric_for_best_model = "loss"
        super().__post_init__()
        if self.generation_no_repeat_ngram < 0:
            raise ValueError(
                f"`generation_no_repeat_ngram` ({self.generation_no_repeat_ngram}) must be 0 (off) or a number "
                "of tokens, such as 3."
            )
        if self.generation_num_beams < 1 or self.generation_max_new_tokens < 1:
            raise ValueError(
                f"`generation_num_beams` ({self.generation_num_beams}) and `generation_max_new_tokens` "
                f"({self.generation_max_new_tokens}) must be at least 1."
            )

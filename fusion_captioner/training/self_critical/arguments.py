"""Settings of self-critical training."""

from dataclasses import dataclass, field
from typing import Literal

from fusion_captioner.training.self_critical.rewards import REWARDS
from fusion_captioner.training.training_arguments import FusionCaptionerTrainingArguments


@dataclass
class SelfCriticalArguments(FusionCaptionerTrainingArguments):
    """
    [`FusionCaptionerTrainingArguments`] with the settings of self-critical training.

    Raises:
        ValueError: the settings do not fit together; the message names the fields.
    """

    rewards: dict[str, float | dict[str, float]] = field(
        default_factory=lambda: {"CIDEr": 1.0},
        metadata={
            "help": f"Weight of each reward, or its weights by language; the rewards are {', '.join(REWARDS)}.",
            "example": "{CIDEr: 1.0}",
        },
    )
    document_frequencies: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Captions whose n-grams the rewards by CIDEr count, not the training set's: a `.gz` file of "
            "lines `image id<TAB>caption`, or a folder or file of any layout; with several languages by language.",
            "example": "captions.txt.gz",
        },
    )
    samples_per_image: int = field(default=5, metadata={"help": "Captions sampled per image; at least 2."})
    candidates: Literal["samples", "beams"] = field(
        default="samples",
        metadata={
            "help": "The captions that are rewarded: drawn at random, or the `samples_per_image` best of beam "
            "search, as the captioner is used (Cornia et al., 2020, section 3.3)."
        },
    )
    sampling_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the samples; 1 keeps the model's distribution."}
    )
    cross_entropy_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the cross-entropy on reference captions, from 0 to below 1; the rest is the reward's."
        },
    )
    discriminator_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of the reward `discriminator`."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.rewards) - set(REWARDS))
        if unknown or not self.rewards:
            raise ValueError(f"`rewards` ({self.rewards}) must map some of these to weights: {', '.join(REWARDS)}.")
        if self.document_frequencies is not None and not {"CIDEr", "CIDEr-between"} & set(self.rewards):
            raise ValueError(
                f"`document_frequencies` ({self.document_frequencies}) are for rewards by CIDEr, and `rewards` has "
                f"{', '.join(self.rewards)}; unset them."
            )
        if self.samples_per_image < 2:
            raise ValueError(
                f"`samples_per_image` ({self.samples_per_image}) must be at least 2: each sample is compared with "
                f"the others."
            )
        if self.candidates not in ("samples", "beams"):
            raise ValueError(f"`candidates` ({self.candidates!r}) must be 'samples' or 'beams'.")
        if self.sampling_temperature <= 0:
            raise ValueError(f"`sampling_temperature` ({self.sampling_temperature}) must be above 0.")
        if not 0 <= self.cross_entropy_weight < 1:
            raise ValueError(f"`cross_entropy_weight` ({self.cross_entropy_weight}) must be at least 0 and below 1.")
        if self.discriminator_learning_rate <= 0:
            raise ValueError(f"`discriminator_learning_rate` ({self.discriminator_learning_rate}) must be above 0.")

"""
The captions of one self-critical training step, and the base class of the rewards that score them.

B: images, N: sampled captions, T = B·k: reference captions; the captions of one image are adjacent rows, L: tokens,
P: regions, Dv: width of a region
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from fusion_captioner.metrics.tokenization import Tokenizer, tokenize_caption
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration

# Appended to every reference, and to every sample that ended with EOS. Without it in the reward, a caption that breaks
# off after "with a" loses nothing, and captions soon do (Rennie et al., 2017, section 5).
END = "</s>"

# What reference captions are kept by: the id of an image, or, with several languages, the language and the id.
ImageKey = str | tuple[str, str]


@dataclass
class SampledCaptions:
    """
    Args:
        image_ids (N): the image of each caption, with several languages after the language.
        texts (N): the words, without prompt and special tokens.
        ended (N): whether the caption ended with EOS, or was cut at the maximum length.
        input_ids, attention_mask (`torch.LongTensor` of shape `(N, L)`): prompt and words, as sampled.
        image_hidden_states (`torch.FloatTensor` of shape `(B, P, Dv)`): one row per image.
        tokenizer: from a caption to its words.
    """

    image_ids: Sequence[ImageKey]
    texts: Sequence[str]
    ended: Sequence[bool]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_hidden_states: torch.Tensor
    tokenizer: Tokenizer = tokenize_caption

    def tokens(self) -> list[list[Hashable]]:
        """Words of each caption, with `END` where it ended."""
        return [
            [*self.tokenizer(text), *([END] if ended else [])]
            for text, ended in zip(self.texts, self.ended, strict=True)
        ]


@dataclass
class ReferenceCaptions:
    """
    The reference captions of a batch, for the same images as its `SampledCaptions`.

    Args:
        image_ids (B): ids of the images.
        input_ids, attention_mask (`torch.LongTensor` of shape `(T, L)`): prompt, words and EOS.
    """

    image_ids: Sequence[ImageKey]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor


class RewardSettings(Protocol):
    """The settings of a run that rewards read."""

    discriminator_learning_rate: float


class Reward:
    """
    Built once per run and called at every step. A reward that is itself trained overrides `learn`, `save` and
    `resume`.

    Args:
        references: reference captions of every training image.
        model: the captioner.
        settings: settings of the run.
        tokenizer: from a caption to its words.
    """

    def __init__(
        self,
        references: Mapping[ImageKey, Sequence[str]],
        model: FusionCaptionerForConditionalGeneration,
        settings: RewardSettings,
        tokenizer: Tokenizer = tokenize_caption,
    ) -> None:
        raise NotImplementedError

    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        """(N,) float64: the reward of each caption."""
        raise NotImplementedError

    def learn(self, samples: SampledCaptions, references: ReferenceCaptions) -> dict[str, float]:
        """One training step on the rewarded captions; returns values for the log."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the state of training into a checkpoint."""

    def resume(self, folder: Path) -> None:
        """Read what `save` wrote."""

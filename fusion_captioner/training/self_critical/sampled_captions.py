"""
What rewards see of a self-critical training step, and what a reward is.

B: images, N: sampled captions, T = B·k: captions by people; the captions of one image stand together, L: tokens,
P: regions, Dv: width of a region
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fusion_captioner.metrics.tokenization import tokenize_caption
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration

if TYPE_CHECKING:  # the arguments name the rewards there are
    from fusion_captioner.training.self_critical.arguments import SelfCriticalArguments

# Stands at the end of every reference and of every sample that ended by itself. Without it in the reward, a caption
# that breaks off after "with a" loses nothing, and captions soon do (Rennie et al., 2017, section 5).
END = "</s>"


@dataclass
class SampledCaptions:
    """
    Args:
        image_ids (N): the image of each.
        texts (N): the words, without prompt and special tokens.
        ended (N): whether it came to its EOS, or was cut at the longest length.
        input_ids, attention_mask (`torch.LongTensor` of shape `(N, L)`): prompt and words, as sampled.
        image_hidden_states (`torch.FloatTensor` of shape `(B, P, Dv)`): of the images, one row each.
    """

    image_ids: Sequence[str]
    texts: Sequence[str]
    ended: Sequence[bool]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_hidden_states: torch.Tensor

    def tokens(self) -> list[list[str]]:
        """Words of each caption, with `END` where it ended."""
        return [
            tokenize_caption(text) + ([END] if ended else [])
            for text, ended in zip(self.texts, self.ended, strict=True)
        ]


@dataclass
class PeoplesCaptions:
    """
    The captions by people that a batch holds, of the images of its `SampledCaptions`.

    Args:
        image_ids (B): of the images.
        input_ids, attention_mask (`torch.LongTensor` of shape `(T, L)`): prompt, words and EOS.
    """

    image_ids: Sequence[str]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor


class Reward:
    """
    Built once a run, and called every step. One that is itself trained does so in `learn`, after its call, and goes
    into the checkpoints; to the others these methods mean nothing.

    Args:
        references: captions by people of every training image, by image id.
        model: the captioner.
        args: settings of the run.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        model: FusionCaptionerForConditionalGeneration,
        args: "SelfCriticalArguments",
    ) -> None:
        raise NotImplementedError

    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        """(N,) float64: what each caption earns."""
        raise NotImplementedError

    def learn(self, samples: SampledCaptions, people: PeoplesCaptions) -> dict[str, float]:
        """One training step on what was rewarded; returns what is to be logged."""
        return {}

    def save(self, folder: Path) -> None:
        """Write what training goes on with into a checkpoint."""

    def resume(self, folder: Path) -> None:
        """Take up what `save` wrote."""

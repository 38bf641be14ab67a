"""What a sampled caption earns in self-critical training: one class a reward, a closed dict beside them.

N: sampled captions of a batch, those of one image standing together
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from fusion_captioner.metrics.bleu import sentence_bleu
from fusion_captioner.metrics.cider import CiderD
from fusion_captioner.metrics.tokenization import tokenize_caption
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration

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


class Reward(Protocol):
    """A reward is built once, from the references by image id and the model, and called every step."""

    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        """(N,) float64."""


def _reference_tokens(references: Mapping[str, Sequence[str]]) -> list[list[list[str]]]:
    return [[[*tokenize_caption(caption), END] for caption in captions] for captions in references.values()]


class CiderReward:
    """CIDEr-D with the document frequencies of the training set (Rennie et al., 2017)."""

    def __init__(
        self, references: Mapping[str, Sequence[str]], model: FusionCaptionerForConditionalGeneration
    ) -> None:
        self._cider = CiderD(_reference_tokens(references), tokenizer=None)
        self._index = {image_id: index for index, image_id in enumerate(references)}

    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        return self._cider.score(samples.tokens(), [self._index[image_id] for image_id in samples.image_ids])


class BleuReward:
    """BLEU-4 of the single caption, smoothed so that one without a common 4-gram still earns by its shorter ones
    (Lin & Och, 2004)."""

    def __init__(
        self, references: Mapping[str, Sequence[str]], model: FusionCaptionerForConditionalGeneration
    ) -> None:
        self._references = dict(zip(references, _reference_tokens(references), strict=True))

    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        return sentence_bleu(samples.tokens(), [self._references[image_id] for image_id in samples.image_ids])


class MatchingReward:
    """How sure the model's own matching head is that the caption belongs to the image, from 0 to 1.

    Raises:
        ValueError: if the model was trained without the matching loss, and so has no such head.
    """

    def __init__(
        self, references: Mapping[str, Sequence[str]], model: FusionCaptionerForConditionalGeneration
    ) -> None:
        if not model.config.matching_loss_weight:
            raise ValueError(
                "the reward `matching` needs a model with `matching_loss_weight` above 0; train it so, or leave the "
                "reward out."
            )
        self._model = model

    @torch.no_grad()
    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        scores = self._model.get_matching_scores(
            samples.input_ids, samples.attention_mask, image_hidden_states=samples.image_hidden_states
        )
        return scores.double().cpu().numpy()


REWARDS: dict[str, type[CiderReward] | type[BleuReward] | type[MatchingReward]] = {
    "CIDEr": CiderReward,
    "BLEU-4": BleuReward,
    "matching": MatchingReward,
}

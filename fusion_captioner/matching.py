"""
Scores of how well a text and an image go together, for pairs of whatever texts and images.

T: texts, L: tokens, B: images, P: regions, Dv: width of a region, D: hidden size, N: pairs
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .causal_layers import SequenceDropout
from .configuration_fusion_captioner import FusionCaptionerConfig

# `FusionCaptionerModel.fuse`: text states, projected regions and attention mask to joint representations
Fuse = Callable[[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor | None], torch.Tensor]


class FusionMatching(nn.Module):
    """
    A pair's score from its fused states (ALBEF: Li et al., 2021, section 3.2): the mean over the tokens, so that every
    word is held against the regions that it attends to, and not the sentence against them as one.
    """

    def __init__(self, config: FusionCaptionerConfig, image_width: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(
        self,
        texts: torch.Tensor,
        images: torch.Tensor,
        outputs: Any,
        attention_mask: torch.Tensor | None,
        fuse: Fuse,
    ) -> torch.Tensor:
        """
        Args:
            texts, images (`torch.LongTensor` of shape `(N,)`): row of the text and row of the image of each pair.
            outputs (`FusionCaptionerModelOutput`): of the base model, of which text states and projected regions are
                read.
            attention_mask (`torch.LongTensor` of shape `(T, L)`, *optional*).
            fuse: `FusionCaptionerModel.fuse`.

        Returns:
            logits `(N,)`.
        """
        mask = None if attention_mask is None else attention_mask[texts]
        projected = tuple(tensor[images] for tensor in outputs.projected_regions)
        joint = fuse(outputs.text_hidden_states[texts], projected, mask)
        scores = self.head(joint).squeeze(-1)  # (N, L)
        if mask is None:
            return scores.mean(dim=1)
        return (scores * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class WordRegionMatching(nn.Module):
    """
    A pair's score from its words and regions in a space of their own, both ways (stacked cross attention, SCAN: Lee et
    al., 2018, sections 3.1 and 3.2): each word attends to the regions that are nearest to it, each region to the
    words, and scores how near they are. How much a word and a region count among the others is learned from them. A
    word and a region cost one product, where the fusion costs a network.
    """

    # Of attention over cosine similarities; SCAN's are 4 to 9
    SHARPNESS = 20.0
    # What the learned scale and threshold of similarities begin at
    SCALE, THRESHOLD = 20.0, 0.1

    def __init__(self, config: FusionCaptionerConfig, image_width: int) -> None:
        super().__init__()
        self.word_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.region_projection = nn.Linear(image_width, config.hidden_size, bias=False)
        self.word_weight = nn.Linear(config.hidden_size, 1, bias=False)
        self.region_weight = nn.Linear(image_width, 1, bias=False)
        self.region_dropout = SequenceDropout(config.image_dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.SCALE)))
        self.threshold = nn.Parameter(torch.tensor(self.THRESHOLD))

    def forward(self, texts, images, outputs, attention_mask, fuse) -> torch.Tensor:
        """As `FusionMatching.forward`; text states and regions are read, and nothing is fused."""
        text_states = outputs.text_hidden_states
        regions = self.region_dropout(outputs.image_hidden_states)
        words = nn.functional.normalize(self.word_projection(text_states).float(), dim=-1)
        places = nn.functional.normalize(self.region_projection(regions).float(), dim=-1)
        word_logits = self.word_weight(text_states).squeeze(-1).float()  # (T, L)
        near = torch.bmm(words[texts], places[images].transpose(1, 2)).float()  # (N, L, P)
        attention = self.SHARPNESS * near
        of_words = (attention.softmax(dim=2) * near).sum(dim=2)  # (N, L)
        if attention_mask is not None:
            padding, lowest = attention_mask == 0, torch.finfo(near.dtype).min
            word_logits = word_logits.masked_fill(padding, lowest)
            attention = attention.masked_fill(padding[texts].unsqueeze(2), lowest)
        of_regions = (attention.softmax(dim=1) * near).sum(dim=1)  # (N, P)
        word_weights = word_logits.softmax(dim=1)
        region_weights = self.region_weight(regions).squeeze(-1).float().softmax(dim=1)  # (B, P)
        similarity = (of_words * word_weights[texts]).sum(dim=1) + (of_regions * region_weights[images]).sum(dim=1)
        return self.log_scale.exp() * (similarity - 2 * self.threshold)


MATCHINGS = {"fusion": FusionMatching, "word_region": WordRegionMatching}

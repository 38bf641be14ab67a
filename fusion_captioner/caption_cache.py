"""The cache that generation carries from token to token, one class for recurrent and Transformer parts alike."""

import torch
from transformers import Cache

from .causal_layers import State


class CaptionCache(Cache):
    """
    States of text encoder, fusion and decoder after the tokens so far, and the projected regions of the images.

    States have one row a text (beam or sample) and follow the beams. Projected regions have one row an image: all
    beams and samples of an image share them, so they are neither expanded nor reordered.

    Args:
        projected_regions (tuple of `torch.FloatTensor`, each with one row an image): see `fusion.py`.
    """

    def __init__(self, projected_regions: State) -> None:
        super().__init__(layers=[])
        self.projected_regions = projected_regions
        self.text_state: State | None = None
        self.fusion_state: State | None = None
        self.decoder_state: State | None = None
        self.seen_tokens = 0

    @property
    def is_compileable(self) -> bool:
        """False: recurrent layers break the graph, and Transformer states grow."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether a token has been seen."""
        return self.seen_tokens > 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, padding included."""
        return self.seen_tokens

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row `i` becomes what row `beam_idx[i]` was; beam search moves rows within their image only."""
        for name in ("text_state", "fusion_state", "decoder_state"):
            if (state := getattr(self, name)) is not None:
                setattr(self, name, tuple(tensor.index_select(0, beam_idx.to(tensor.device)) for tensor in state))

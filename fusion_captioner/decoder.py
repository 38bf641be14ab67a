"""
Decoder: causal layers over the joint representations, whose outputs `lm_head` turns into words.

B: batch, L: tokens, D: hidden size
"""

import torch
from torch import nn

from .causal_layers import SequenceDropout, State, build_causal_layers
from .configuration_fusion_captioner import FusionCaptionerConfig


class CaptionDecoder(nn.Module):
    """
    An LSTM, GRU or Transformer that reads, token by token, the joint representation and, where
    `decoder_input="joint_and_embedding"`, the word embedding concatenated to it. With `decoder_residual`, what LSTM or
    GRU layers give is added to the joint representation and normalised, as Transformer layers do it of themselves.
    """

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__()
        self.reads_embedding = config.decoder_input == "joint_and_embedding"
        input_size = 2 * config.hidden_size if self.reads_embedding else config.hidden_size
        self.layers = build_causal_layers(config.decoder_type, input_size, config.num_hidden_layers, config)
        self.norm = None
        if config.decoder_residual and config.decoder_type in ("lstm", "gru"):
            self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = SequenceDropout(config.dropout)

    def forward(
        self,
        fused_hidden_states: torch.Tensor,
        embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        state: State | None = None,
        return_state: bool = False,
    ) -> tuple[torch.Tensor, State | None]:
        """From joint representations and word embeddings, both `(B, L, D)`, to hidden states `(B, L, D)` and the
        state or `None`; the other arguments as in `causal_layers.CausalRecurrent.forward`."""
        inputs = fused_hidden_states
        if self.reads_embedding:
            inputs = torch.cat((fused_hidden_states, embeddings), dim=-1)
        hidden_states, state = self.layers(inputs, attention_mask, state, return_state)
        if self.norm is not None:
            hidden_states = self.norm(hidden_states + fused_hidden_states)
        return self.dropout(hidden_states) if self.training else hidden_states, state

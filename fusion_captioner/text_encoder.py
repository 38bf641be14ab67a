"""
Causal text encoder: whatever text there is (a prompt, a question, the caption so far) becomes one state a token.

B: batch, L: tokens, D: hidden size
"""

import torch
from torch import nn

from .causal_layers import SequenceDropout, State, build_causal_layers
from .configuration_fusion_captioner import FusionCaptionerConfig


class TextEncoder(nn.Module):
    """
    Token embedding and causal layers. State `t` depends on tokens up to `t` only: what the decoder reads while it
    is trained on a caption then holds nothing of the words that it has yet to predict. With `text_encoder_type`
    `"embedding"` there are no layers, and the states are the words themselves.
    """

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__()
        self.word_dropout = config.word_dropout
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = None
        if config.text_encoder_type != "embedding":
            self.layers = build_causal_layers(
                config.text_encoder_type, config.hidden_size, config.num_text_encoder_layers, config
            )
        # Transformer layers end in a normalisation of their own
        normalizes = config.normalize_text_states and config.text_encoder_type in ("lstm", "gru")
        self.norm = nn.LayerNorm(config.hidden_size) if normalizes else nn.Identity()
        self.dropout = SequenceDropout(config.dropout)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        state: State | None = None,
        return_state: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, State | None]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`).
            attention_mask (`torch.LongTensor` of shape `(B, past + L)`, *optional*).
            state, return_state: see `causal_layers.CausalRecurrent.forward`.

        Returns:
            text states `(B, L, D)`, word embeddings `(B, L, D)`, and the state or `None`.
        """
        embeddings = self.embedding(input_ids)
        if self.training:
            embeddings = self.dropout(embeddings)
            if self.word_dropout:
                # the first token stays: an empty beginning would look like padding that the layers never see
                hidden = torch.rand(input_ids.shape, device=input_ids.device) < self.word_dropout
                hidden[:, 0] = False
                embeddings = embeddings.masked_fill(hidden.unsqueeze(-1), 0.0)
        if self.layers is None:
            return embeddings, embeddings, () if return_state else None
        states, state = self.layers(embeddings, attention_mask, state, return_state)
        states = self.norm(states)
        return self.dropout(states) if self.training else states, embeddings, state


def last_token(states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The state `(B, D)` of each row's last real token, from states `(B, L, D)` padded on either side."""
    if attention_mask is None:
        return states[:, -1]
    steps = torch.arange(states.shape[1], device=states.device)
    index = (attention_mask[:, -states.shape[1] :].long() * steps).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), index]


def mean_of_tokens(states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The mean `(B, D)` of each row's states at real tokens, from states `(B, L, D)` padded on either side."""
    if attention_mask is None:
        return states.mean(dim=1)
    mask = attention_mask[:, -states.shape[1] :].unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


TEXT_POOLINGS = {"last": last_token, "mean": mean_of_tokens}

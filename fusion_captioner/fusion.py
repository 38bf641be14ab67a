"""
Cross-modal fusion: token states and image regions become one joint representation. One class a strategy.

B: images, k: texts per image (captions, beams or samples; the k rows of an image stand together), L: tokens,
P: regions, D: hidden size, R: bilinear rank

Each class does its work in two steps, so that an image is projected once however many texts or tokens meet it:
`project_regions` makes the image's side, and `forward` joins it with token states. Rows are counted by `shape[0]`,
since `len` would fix their number in exports.
"""

import math

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .causal_layers import SequenceDropout, State, attend
from .configuration_fusion_captioner import FusionCaptionerConfig

FusionOutput = tuple[torch.Tensor, torch.Tensor | None, State | None]


def count_texts(texts: int, images: int) -> int:
    """Texts per image.

    Raises:
        ValueError: if the texts do not divide evenly among the images.
    """
    if images == 0 or texts == 0:
        raise ValueError(f"the batch is empty ({images} images, {texts} texts); give at least one of each.")
    if texts % images:
        raise ValueError(
            f"{texts} rows of `input_ids` do not divide among {images} images; give the same number of texts for "
            "each image, those of one image next to each other."
        )
    return texts // images


class Fusion(GradientCheckpointingLayer):
    """What the strategies share: the two steps and their shapes."""

    def project_regions(self, regions: torch.Tensor) -> State:
        """From regions `(B, P, D)` to the tensors that `forward` needs of an image, each with B rows."""
        raise NotImplementedError

    def forward(
        self,
        text_states: torch.Tensor,
        *projected: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        state: State | None = None,
        output_attentions: bool = False,
    ) -> FusionOutput:
        """
        Args:
            text_states (`torch.FloatTensor` of shape `(B*k, L, D)`).
            projected: what `project_regions` returned for the B images, one by one, since reentrant gradient
                checkpointing follows gradients to tensors that are arguments only.
            attention_mask (`torch.LongTensor` of shape `(B*k, L)`, *optional*): 1 at tokens, 0 at padding.
            state: what an earlier call returned as its third value; only co-attention carries one.
            output_attentions (`bool`): whether the weights over the regions are wanted.

        Returns:
            joint representations `(B*k, L, D)`, attention weights `(B*k, heads, L, P)` or `None`, state or `None`.
        """
        raise NotImplementedError


class PooledFusion(Fusion):
    """A strategy that sees the image as one vector, the mean of its regions: the same for every token."""

    def project_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """The image's side, `(B, ·)`, from pooled regions `(B, D)`."""
        raise NotImplementedError

    def join(self, text_states: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Joint representations from token states `(B*k, L, D)` and the image's side `(B*k, 1, ·)`."""
        raise NotImplementedError

    def project_regions(self, regions: torch.Tensor) -> State:
        return (self.project_pooled(regions.mean(dim=1)),)

    def forward(self, text_states, *projected, attention_mask=None, state=None, output_attentions=False):
        rows, images = text_states.shape[0], projected[0].shape[0]
        # as `repeat_interleave` does, which the ONNX exporter gets wrong where the number of texts is dynamic
        image = projected[0].unsqueeze(1).expand(-1, rows // images, -1).reshape(rows, 1, -1)
        return self.join(text_states, image), None, None


class SumFusion(PooledFusion):
    """`ReLU(Wv·v̄ + Wt·t)`: the plain cross-modal fusion."""

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__()
        self.image_projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.text_projection = nn.Linear(config.hidden_size, config.hidden_size)

    def project_pooled(self, pooled):
        return self.image_projection(pooled)

    def join(self, text_states, image):
        return nn.functional.relu(image + self.text_projection(text_states))


class ConcatFusion(PooledFusion):
    """`ReLU(W·[v̄ ; t])`"""

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def project_pooled(self, pooled):
        return pooled

    def join(self, text_states, image):
        # not by the two halves of the matrix: adapters and quantisation replace the layer, and would be missed
        return nn.functional.relu(self.projection(torch.cat((image.expand_as(text_states), text_states), dim=-1)))


class GatedFusion(PooledFusion):
    """`g⊙Wv·v̄ + (1−g)⊙Wt·t` with `g = σ(W·[v̄ ; t])`: a learned weighted sum (Arevalo et al., 2017)."""

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        # value and gate of one modality come from one product
        self.image_projection = nn.Linear(width, 2 * width)
        self.text_projection = nn.Linear(width, 2 * width)

    def project_pooled(self, pooled):
        return self.image_projection(pooled)

    def join(self, text_states, image):
        image_value, image_gate = image.chunk(2, dim=-1)
        text_value, text_gate = self.text_projection(text_states).chunk(2, dim=-1)
        gate = torch.sigmoid(image_gate + text_gate)
        return gate * image_value + (1 - gate) * text_value


class BilinearFusion(PooledFusion):
    """Low-rank bilinear pooling `P·(tanh(U·v̄) ⊙ tanh(V·t))` (Kim et al., 2017, eq. 4), joined with the state."""

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__()
        self.image_projection = nn.Linear(config.hidden_size, config.bilinear_rank)
        self.text_projection = nn.Linear(config.hidden_size, config.bilinear_rank)
        self.output = nn.Linear(config.bilinear_rank, config.hidden_size)

    def project_pooled(self, pooled):
        return torch.tanh(self.image_projection(pooled))

    def join(self, text_states, image):
        return text_states + self.output(image * torch.tanh(self.text_projection(text_states)))


class AttentionFusion(Fusion):
    """
    Multi-head attention with the token state as query over the regions (Vaswani et al., 2017), joined with the state
    through a residual. All k texts of an image attend to the same keys and values, which exist once.
    """

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        self.region_norm = nn.LayerNorm(config.hidden_size)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.joint_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = SequenceDropout(config.dropout)

    def project_regions(self, regions):
        batch, count, _ = regions.shape
        projected = self.key_value(self.region_norm(regions)).view(batch, count, 2, self.num_heads, -1)
        key, value = projected.permute(2, 0, 3, 1, 4)  # (B, heads, P, D/heads) each
        return key.contiguous(), value.contiguous()

    def forward(self, text_states, *projected, attention_mask=None, state=None, output_attentions=False):
        key, value = projected
        rows, length, width = text_states.shape
        query = self._split(self.query(text_states), key.shape[0])  # (B, heads, k*L, D/heads)
        weights = None
        if output_attentions:
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
            context, weights = self._attend(scores.float().softmax(dim=-1).to(query.dtype), value, rows, True)
        else:
            dropout = self.attention_dropout if self.training else 0.0
            context = attend(query, key, value, dropout=dropout)
        context = self.output(context.transpose(1, 2).reshape(rows, length, width))
        context = self.dropout(context) if self.training else context
        return self.joint_norm(text_states + context), weights, None

    def _split(self, states: torch.Tensor, images: int) -> torch.Tensor:
        """`(B*k, L, D)` → `(B, heads, k*L, D/heads)`"""
        return states.reshape(images, -1, self.num_heads, states.shape[-1] // self.num_heads).transpose(1, 2)

    def _by_text(self, weights: torch.Tensor, rows: int) -> torch.Tensor:
        """`(B, heads, k*L, P)` → `(B*k, heads, L, P)`"""
        images, heads, _, regions = weights.shape
        by_text = weights.view(images, heads, rows // images, -1, regions).transpose(1, 2)
        return by_text.reshape(rows, heads, -1, regions)

    def _attend(
        self, weights: torch.Tensor, value: torch.Tensor, rows: int, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The context `(B, heads, k*L, D/heads)` of weights `(B, heads, k*L, P)`, and the weights by text or
        `None`."""
        by_text = None
        if output_attentions:
            # what is returned is what is used, so that it has a gradient
            by_text = self._by_text(weights, rows)
            weights = self._by_image(by_text, value.shape[0])
        return nn.functional.dropout(weights, self.attention_dropout, self.training) @ value, by_text

    def _by_image(self, weights: torch.Tensor, images: int) -> torch.Tensor:
        """`(B*k, heads, L, P)` → `(B, heads, k*L, P)`"""
        rows, heads, _, regions = weights.shape
        by_image = weights.view(images, rows // images, heads, -1, regions).transpose(1, 2)
        return by_image.reshape(images, heads, -1, regions)


class CoAttentionFusion(AttentionFusion):
    """
    Parallel co-attention (Lu et al., 2016, section 3.3) made causal. Text attends to regions as in
    `AttentionFusion`; in addition, regions are re-weighted by all the text seen so far:
    `softmax_P(log Σ_{s≤t} exp A_s)` of the affinities A (their mean over the heads), a running log-sum-exp whose
    state is `(B*k, P)`.
    """

    # Far below any affinity, and finite: an infinite one would make the log-sum-exp of a padded beginning undefined.
    MASKED = -1e4

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__(config)
        self.output = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def forward(self, text_states, *projected, attention_mask=None, state=None, output_attentions=False):
        key, value = projected
        rows, length, width = text_states.shape
        texts = rows // key.shape[0]
        query = self._split(self.query(text_states), key.shape[0])
        affinities = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).float()  # (B, heads, k*L, P)
        context, weights = self._attend(affinities.softmax(dim=-1).to(query.dtype), value, rows, output_attentions)

        seen = self._by_text(affinities, rows).mean(dim=1)  # (B*k, L, P)
        if attention_mask is not None:
            seen = seen.masked_fill(attention_mask[:, -length:, None] == 0, self.MASKED)
        if length > 1:  # exporters know no logcumsumexp, and a single step needs none
            seen = seen.logcumsumexp(dim=1)
        if state is not None:
            # logaddexp, which exporters write as log(exp + exp): minus infinity where both are padding
            before = state[0].unsqueeze(1)
            seen = torch.maximum(seen, before) + (-(seen - before).abs()).exp().log1p()
        region_weights = seen.softmax(dim=-1).to(query.dtype).view(key.shape[0], texts * length, -1)
        regions = value.transpose(1, 2).flatten(2)  # (B, P, D)
        reweighted = (region_weights @ regions).view(rows, length, width)

        context = context.transpose(1, 2).reshape(rows, length, width)
        joined = self.output(torch.cat((context, reweighted), dim=-1))
        joined = self.dropout(joined) if self.training else joined
        return self.joint_norm(text_states + joined), weights, (seen[:, -1],)


FUSIONS: dict[str, type[Fusion]] = {
    "sum": SumFusion,
    "concat": ConcatFusion,
    "gated": GatedFusion,
    "bilinear": BilinearFusion,
    "attention": AttentionFusion,
    "co_attention": CoAttentionFusion,
}

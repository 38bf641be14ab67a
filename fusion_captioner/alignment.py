"""
Alignment: what ties image and text embeddings to each other besides the caption.

B: images, T = B·k: texts, L: tokens, Dv: width of a region, D: hidden size, E: projection width
"""

from typing import Any

import torch
from torch import distributed, nn

from .configuration_fusion_captioner import FusionCaptionerConfig
from .losses import (
    hardest_negative_loss,
    info_nce_loss,
    matching_loss,
    modality_critic_loss,
    reconstruction_loss,
    reverse_gradient,
)
from .matching import MATCHINGS, Fuse
from .placed_weights import own_parameter


class _Gather(torch.autograd.Function):
    """Rows of all processes. Every process has a loss of them, so a row's gradient is the sum over the processes."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        processes = distributed.get_world_size()
        # a process that left out an image that cannot be decoded has fewer rows, and collectives take equal shapes
        count = torch.tensor([len(rows)], device=rows.device)
        gathered_counts = [torch.empty_like(count) for _ in range(processes)]
        distributed.all_gather(gathered_counts, count)
        counts = torch.cat(gathered_counts).tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(processes)]
        distributed.all_gather(gathered, padded)
        first = sum(counts[: distributed.get_rank()])
        ctx.own = slice(first, first + len(rows))
        return torch.cat([part[:number] for part, number in zip(gathered, counts)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[ctx.own]


def gather_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, one below the other, with gradients; alone, the tensor itself."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    return _Gather.apply(tensor)


class AlignmentLosses(nn.Module):
    """
    The auxiliary loss terms and the small networks that they need; a term of weight 0 has neither.

    - contrastive: matching image and text embeddings are close, others are not;
    - adversarial: a critic behind a gradient reversal cannot tell the modalities apart;
    - reconstruction: from a text embedding the image's pooled features are rebuilt (the cross-modal generator);
    - matching: a score of the two together tells true pairs from hard negatives (ALBEF: Li et al., 2021, section 3.2);
      see `matching.py`.
    """

    def __init__(self, config: FusionCaptionerConfig, image_width: int) -> None:
        super().__init__()
        self.config = config
        hidden, width = config.hidden_size, config.projection_dim
        if config.contrastive_loss_weight:
            self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        if config.adversarial_loss_weight:
            self.critic = nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1))
        if config.reconstruction_loss_weight:
            self.generator = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, image_width))
        if config.matching_loss_weight:
            self.matching = MATCHINGS[config.matching_type](config, image_width)

    @property
    def is_active(self) -> bool:
        """Whether any term is on, so that embeddings are needed."""
        return any(
            (
                self.config.contrastive_loss_weight,
                self.config.adversarial_loss_weight,
                self.config.reconstruction_loss_weight,
                self.config.matching_loss_weight,
            )
        )

    def forward(self, outputs: Any, attention_mask: torch.Tensor | None, fuse: Fuse) -> dict[str, torch.Tensor]:
        """
        Args:
            outputs (`FusionCaptionerModelOutput`): of the base model; embeddings, text states, regions and, for the
                matching term, projected regions are read.
            attention_mask (`torch.LongTensor` of shape `(T, L)`, *optional*): of the texts.
            fuse: `FusionCaptionerModel.fuse`.

        Returns:
            one unweighted scalar per term that is on.
        """
        terms: dict[str, torch.Tensor] = {}
        image_embeds, text_embeds = outputs.image_embeds, outputs.text_embeds
        text_images = torch.arange(len(text_embeds), device=text_embeds.device) // (
            len(text_embeds) // len(image_embeds)
        )
        if self.config.contrastive_loss_weight:
            terms["contrastive"] = self._contrastive(image_embeds, text_embeds)
        if self.config.adversarial_loss_weight:
            weight = self.config.gradient_reversal_weight
            terms["adversarial"] = modality_critic_loss(
                self.critic(reverse_gradient(image_embeds, weight)).squeeze(-1),
                self.critic(reverse_gradient(text_embeds, weight)).squeeze(-1),
            )
        if self.config.reconstruction_loss_weight:
            terms["reconstruction"] = reconstruction_loss(
                self.generator(text_embeds), outputs.image_hidden_states.mean(dim=1)[text_images]
            )
        if self.config.matching_loss_weight:
            texts, images, matches = self._drawn_pairs(image_embeds, text_embeds, text_images)
            scores = self.matching(texts, images, outputs, attention_mask, fuse)
            terms["matching"] = matching_loss(scores, matches)
        return terms

    @property
    def inverse_temperature(self) -> torch.Tensor:
        """What cosine similarities are multiplied by; bounded, as CLIP's."""
        return own_parameter(self, "logit_scale").exp().clamp(max=100.0)

    def _contrastive(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        texts = len(text_embeds) // len(image_embeds)
        image_embeds, text_embeds = gather_over_processes(image_embeds), gather_over_processes(text_embeds)
        text_images = torch.arange(len(text_embeds), device=text_embeds.device) // texts
        if self.config.contrastive_loss_type == "hinge":
            return hardest_negative_loss(image_embeds, text_embeds, self.config.contrastive_margin, text_images)
        return info_nce_loss(image_embeds, text_embeds, self.inverse_temperature, text_images)

    @torch.no_grad()
    def _drawn_pairs(
        self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, text_images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Text, image and match, 1 or 0, of true pairs; of each text with other images; and of each text's image with
        other texts. The others, `matching_negatives` of each kind where the batch has so many, are drawn by
        similarity, none of them twice; a batch of one image has none.
        """
        texts = torch.arange(len(text_embeds), device=text_embeds.device)
        if len(image_embeds) == 1:
            return texts, text_images, torch.ones_like(texts)
        similarity = text_embeds.float() @ image_embeds.float().T * self.inverse_temperature  # (T, B)
        own = text_images.unsqueeze(1) == torch.arange(len(image_embeds), device=text_embeds.device)
        other_images = self._draw(similarity, own)  # (T, N)
        other_texts = self._draw(similarity.T[text_images], own.T[text_images])
        chosen_texts = torch.cat((texts, texts.repeat_interleave(other_images.shape[1]), other_texts.flatten()))
        chosen_images = torch.cat(
            (text_images, other_images.flatten(), text_images.repeat_interleave(other_texts.shape[1]))
        )
        matches = torch.zeros_like(chosen_texts)
        matches[: len(texts)] = 1
        return chosen_texts, chosen_images, matches

    def _draw(self, similarity: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Of each row `(·, N)` different columns, drawn in proportion to `exp(similarity)`, that are not its own."""
        count = min(self.config.matching_negatives, int((~own).sum(dim=1).min()))
        # far from all others, a row would have less than `count` columns whose probability is no 0
        probabilities = similarity.masked_fill(own, -torch.inf).softmax(dim=1).clamp(min=1e-12)
        # similarities that are not finite make the loss so, which training reports; drawing must not fail before that
        return torch.multinomial(probabilities.nan_to_num(nan=1.0).masked_fill(own, 0.0), count)

"""Which regions of a picture a word of its caption depends on: one function per method, all in `ATTRIBUTIONS`.

h, w: grid of the regions, P = h·w: regions, Dv: width of a region, H, W: pixels of the model's input, T: texts,
L: tokens, N: words
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PICTURES = 16  # that the image encoder reads at once


@dataclass(frozen=True, slots=True)
class ReadCaption:
    """
    A picture and its caption, as the model takes them.

    Args:
        model: a `FusionCaptionerForConditionalGeneration`.
        pixel_values (`torch.FloatTensor` of shape `(1, 3, H, W)`).
        regions (`torch.FloatTensor` of shape `(1, P, Dv)`): what the image encoder makes of the pixels.
        grid: (h, w).
        sequence (`torch.LongTensor` of shape `(1, L)`): the caption behind BOS.
        positions: of the tokens of each word.
    """

    model: Any
    pixel_values: torch.Tensor
    regions: torch.Tensor
    grid: tuple[int, int]
    sequence: torch.Tensor
    positions: list[list[int]]

    def word_log_probabilities(self, regions: torch.Tensor) -> torch.Tensor:
        """Logarithm of the probability of each word `(T, N)` of the caption, given each picture `(T, P, Dv)`."""
        return self.of_words(self.read(regions).logits)

    def read(self, regions: torch.Tensor, output_attentions: bool = False) -> Any:
        """The model's output for the caption and pictures `(T, P, Dv)`."""
        return self.model(
            input_ids=self.sequence.expand(len(regions), -1),
            image_hidden_states=regions,
            output_attentions=output_attentions,
            use_cache=False,
            return_dict=True,
        )

    def of_words(self, logits: torch.Tensor) -> torch.Tensor:
        """From logits `(T, L, V)` to logarithms of the words' probabilities `(T, N)`, the sum over each one's
        tokens."""
        scores = logits[:, :-1].float().log_softmax(dim=-1)
        of_tokens = scores.gather(-1, self.sequence[:, 1:, None].expand(len(scores), -1, -1)).squeeze(-1)
        words = [of_tokens[:, [place - 1 for place in places]].sum(dim=1) for places in self.positions]
        return torch.stack(words, dim=1) if words else of_tokens[:, :0]


def attention(caption: ReadCaption) -> torch.Tensor:
    """The attention that each word was written from, the mean over the heads and over the word's tokens."""
    with torch.no_grad():
        weights = _attentions(caption, caption.regions)[1][0].float().mean(dim=0)  # (L, P)
        weights = weights[:, : caption.regions.shape[1]]  # concepts have no place in the picture
    # the token before wrote the token
    return torch.stack([weights[[place - 1 for place in places]].mean(dim=0) for places in caption.positions])


def attention_gradient(caption: ReadCaption) -> torch.Tensor:
    """
    Attention times the gradient of the word's log-probability by it, where that is positive, over all tokens up to the
    word (Chefer et al., 2021, eq. 5): which of the looks made the word likelier.
    """
    with _gradients():
        logits, weights = _attentions(caption, caption.regions.detach().requires_grad_())
        gradients = _gradients_of_words(caption.of_words(logits)[0], weights)  # (N, 1, heads, L, P)
        relevance = (gradients * weights).clamp(min=0).mean(dim=2).sum(dim=2).squeeze(1).detach().float()
        return relevance[:, : caption.regions.shape[1]]  # concepts have no place in the picture


def integrated_gradients(caption: ReadCaption, steps: int = 8) -> torch.Tensor:
    """
    Integrated gradients (Sundararajan et al., 2017, eq. 1) of the word's log-probability, from the mean region to the
    regions. With one step they are gradient times input.

    Args:
        steps: points of the path, evenly spaced, the regions themselves the last of them.
    """
    baseline = caption.regions.mean(dim=1, keepdim=True)
    difference = caption.regions - baseline
    shares = torch.arange(1, steps + 1, device=difference.device) / steps
    with _gradients():
        path = (baseline + shares.to(difference)[:, None, None] * difference).detach().requires_grad_()
        scores = caption.word_log_probabilities(path).sum(dim=0)
        gradients = _gradients_of_words(scores, path).mean(dim=1)  # (N, P, Dv)
        return (gradients * difference).sum(dim=-1).detach().float()


@torch.no_grad()
def occlusion(caption: ReadCaption) -> torch.Tensor:
    """
    How much the word's log-probability falls when the picture's mean covers the pixels of a region (Zeiler & Fergus,
    2014, section 4.2). The image encoder reads a picture per region, which takes a second or more on a CPU.
    """
    marked = torch.eye(caption.regions.shape[1], dtype=torch.bool, device=caption.regions.device)
    whole = caption.word_log_probabilities(caption.regions)
    drops = []
    for rows in marked.split(PICTURES):
        covered = cover(caption.pixel_values, rows.unflatten(1, caption.grid))
        drops.append(whole - caption.word_log_probabilities(caption.model.get_image_hidden_states(covered)))
    return torch.cat(drops).T


ATTRIBUTIONS: dict[str, Callable[[ReadCaption], torch.Tensor]] = {
    "attention": attention,
    "attention_gradient": attention_gradient,
    "integrated_gradients": integrated_gradients,
    "occlusion": occlusion,
}


def blurred(pixel_values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Pictures `(T, 3, H, W)` of which nothing smaller than a region is left."""
    means = nn.functional.adaptive_avg_pool2d(pixel_values, grid)
    return nn.functional.interpolate(means, pixel_values.shape[-2:], mode="bilinear")


def cover(pixel_values: torch.Tensor, marked: torch.Tensor, cover: torch.Tensor | None = None) -> torch.Tensor:
    """
    Copies of a picture with marked regions covered in the pixels.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(1, 3, H, W)`).
        marked (`torch.BoolTensor` of shape `(T, h, w)`): the regions to cover in each copy.
        cover (`torch.FloatTensor` of shape `(1, 3, H, W)` or `(1, 3, 1, 1)`): what is put in their place; by default
            the picture's mean.

    Returns:
        `(T, 3, H, W)`.
    """
    if cover is None:
        cover = pixel_values.mean(dim=(-2, -1), keepdim=True)
    of_pixels = nn.functional.interpolate(marked[:, None].float(), pixel_values.shape[-2:], mode="nearest").bool()
    return torch.where(of_pixels, cover, pixel_values)


def _attentions(caption: ReadCaption, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and attention weights `(1, heads, L, P + num_concepts)`: the regions come first, concepts after them."""
    outputs = caption.read(regions, output_attentions=True)
    if outputs.attentions is None:
        raise ValueError(
            f"`fusion_type` ({caption.model.config.fusion_type!r}) does not attend to regions; explain with another "
            "`method`, such as 'occlusion', or give a captioner with `attention` or `co_attention`."
        )
    return outputs.logits, outputs.attentions[0]


def _gradients_of_words(scores: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Of each of the N scores by the inputs: `(N, *inputs.shape)`."""
    return torch.stack([torch.autograd.grad(score, inputs, retain_graph=True)[0] for score in scores])


@contextmanager
def _gradients() -> Iterator[None]:
    """Gradients, whatever the caller has set; cuDNN has none for recurrent layers outside training."""
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        yield

"""
The training losses: pure functions of tensors, each returns a scalar.

B: images, T = B·k: texts (the k texts of an image stand together), L: tokens, V: vocabulary, E: projection width,
K: concepts
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Literal

import torch
from torch.autograd import Function
from torch.nn import functional as F

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


def weighted_sum(terms: Mapping[str, torch.Tensor], config: Any) -> torch.Tensor:
    """The loss of named terms, each times the config's `<term>_loss_weight`."""
    return sum(getattr(config, f"{name}_loss_weight") * term for name, term in terms.items())  # type: ignore[return-value]


def in_float32(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Autocast would compute a loss's matrix products in half precision, after the casts to float32 that it begins
    with."""

    @wraps(loss)
    def computed(first: torch.Tensor, *arguments, **keywords) -> torch.Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return loss(first, *arguments, **keywords)

    return computed


def caption_loss(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """
    Cross-entropy of the next word, averaged over the labelled words (Vinyals et al., 2015, eq. 13; label smoothing
    of Szegedy et al., 2016, section 7).

    Args:
        logits (`torch.FloatTensor` of shape `(N, V)`): of the position before each label.
        labels (`torch.LongTensor` of shape `(N,)`): -100 is ignored; without any label the loss is 0.
        label_smoothing (`float`): share of the target spread evenly over the vocabulary.
    """
    total = F.cross_entropy(
        logits.float(), labels, ignore_index=-100, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / (labels != -100).sum().clamp(min=1)


@in_float32
def info_nce_loss(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor, text_images: torch.Tensor
) -> torch.Tensor:
    """
    Symmetric InfoNCE (Radford et al., 2021, figure 3). An image with several texts has the mean over them as target.

    Args:
        image_embeds (`torch.FloatTensor` of shape `(B, E)`), text_embeds (`(T, E)`): normalised.
        logit_scale: scalar, the inverse temperature.
        text_images (`torch.LongTensor` of shape `(T,)`): the image that each text belongs to.
    """
    logits_per_text = logit_scale.float() * text_embeds.float() @ image_embeds.float().T  # (T, B)
    text_loss = F.cross_entropy(logits_per_text, text_images)
    positive = F.one_hot(text_images, len(image_embeds)).T.to(logits_per_text.dtype)  # (B, T)
    image_loss = F.cross_entropy(logits_per_text.T, positive / positive.sum(dim=1, keepdim=True).clamp(min=1))
    return (text_loss + image_loss) / 2


@in_float32
def hardest_negative_loss(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, margin: float, text_images: torch.Tensor
) -> torch.Tensor:
    """
    Hinge on the hardest negative of each pair, both ways (VSE++: Faghri et al., 2018, eq. 6).

    Shapes as in `info_nce_loss`; `margin` in cosine similarity.
    """
    similarity = text_embeds.float() @ image_embeds.float().T  # (T, B)
    own = F.one_hot(text_images, len(image_embeds)).bool()
    positive = similarity[own]  # (T,)
    negative = similarity.masked_fill(own, -torch.inf)
    hardest_image = negative.amax(dim=1)  # (T,)
    hardest_text = negative.amax(dim=0)[text_images]  # (T,)
    violations = F.relu(margin + hardest_image - positive) + F.relu(margin + hardest_text - positive)
    return violations.mean()


def modality_critic_loss(image_logits: torch.Tensor, text_logits: torch.Tensor) -> torch.Tensor:
    """
    Binary cross-entropy of a critic that tells image embeddings (1) from text embeddings (0). Behind
    `reverse_gradient` it makes the encoders hide the modality (Ganin & Lempitsky, 2015; Wang et al., 2017).

    Args:
        image_logits (`torch.FloatTensor` of shape `(B,)`), text_logits (`(T,)`).
    """
    image_loss = F.binary_cross_entropy_with_logits(image_logits.float(), torch.ones_like(image_logits.float()))
    text_loss = F.binary_cross_entropy_with_logits(text_logits.float(), torch.zeros_like(text_logits.float()))
    return (image_loss + text_loss) / 2


def reconstruction_loss(rebuilt: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """
    Mean squared error between pooled image features rebuilt from texts and the true ones, each feature vector
    normalised to zero mean and unit variance (a target that shrinks would otherwise be the easiest to rebuild).

    Args:
        rebuilt, pooled (`torch.FloatTensor` of shape `(T, Dv)`).
    """
    target = F.layer_norm(pooled.detach().float(), pooled.shape[-1:])
    return F.mse_loss(rebuilt.float(), target)


@in_float32
def matching_loss(match_logits: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """
    Binary cross-entropy of image-text pairs told true or false (Li et al., 2021, eq. 3); both of shape `(N,)`. True
    pairs together weigh as much as false ones, however many of these were drawn.
    """
    losses = F.binary_cross_entropy_with_logits(match_logits.float(), matches.float(), reduction="none")
    kinds = torch.stack((matches.float(), 1 - matches.float()))  # (2, N)
    counts = kinds.sum(dim=1)
    return ((kinds @ losses) / counts.clamp(min=1)).sum() / (counts > 0).sum()


def concept_loss(logits: torch.Tensor, true: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """
    Binary cross-entropy of the concepts of each image (Wu et al., 2016, eq. 1, by the logistic function), its sum
    divided by the number of true ones: nats for each concept that is named, as the caption loss has them for each
    word, however many concepts there are. So both begin between 5 and 10, and equal weights are a sensible start.

    Args:
        logits (`torch.FloatTensor` of shape `(B, K)`).
        true (`torch.BoolTensor` of shape `(B, K)`): concepts that the image's captions name.
        counted (`torch.BoolTensor` of shape `(B, K)`): the others do not count; without any the loss is 0.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), true.float(), reduction="none")
    return (losses * counted).sum() / true.sum().clamp(min=1)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: ProblemType, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """
    What transformers' heads for classification minimise: cross-entropy for `"single_label_classification"`, binary
    cross-entropy for `"multi_label_classification"`, mean squared error for `"regression"`.

    Args:
        logits (`torch.FloatTensor` of shape `(B, C)`).
        labels: `(B,)` class numbers, -100 is ignored; `(B, C)` of 0 and 1; or `(B,)` or `(B, C)` values.
        class_weights (`torch.FloatTensor` of shape `(C,)`, *optional*): of a class; with several labels a row, of a
            label's positive examples.
    """
    logits = logits.float()
    if problem_type == "regression":
        return F.mse_loss(logits, labels.float().view_as(logits))
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=class_weights)
    if not (labels != -100).any():
        return logits.sum() * 0.0  # the mean of nothing would be no number
    return F.cross_entropy(logits, labels, weight=class_weights)


class _ReverseGradient(Function):
    @staticmethod
    def forward(ctx, inputs: torch.Tensor, weight: float) -> torch.Tensor:
        ctx.weight = weight
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx, *grad_outputs: torch.Tensor):
        return -ctx.weight * grad_outputs[0], None


def reverse_gradient(inputs: torch.Tensor, weight: float) -> torch.Tensor:
    """The identity, whose gradient is multiplied by `-weight` (Ganin & Lempitsky, 2015, section 3.2)."""
    return _ReverseGradient.apply(inputs, weight)

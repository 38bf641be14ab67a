"""
What the models return. Classification and multiple choice return transformers' own outputs.

B: images, T: texts, L: tokens, P: regions, Dv: width of a region, D: hidden size, E: projection width, V: vocabulary,
K: concepts
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import signature

import torch
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .generation_fusion_captioner import CACHE, CaptionCache


def returns_output(method: Callable) -> Callable:
    """
    What a model's methods share: a `ModelOutput` becomes a tuple where `return_dict`, an argument or the config's
    field, is false, and an argument that neither the method nor transformers knows is refused.
    """
    known = {*signature(method).parameters, *TransformersKwargs.__optional_keys__, "return_dict"}
    returns = can_return_tuple(method)

    @wraps(method)
    def checked(self, *args, **kwargs):
        for name, value in kwargs.items():
            # adapters and pipelines pass what other models know as `None`
            if name not in known and value is not None:
                meant = get_close_matches(name, known, 1)
                fix = f"did you mean `{meant[0]}`?" if meant else "leave it out."
                raise TypeError(f"`{name}` is no argument of `{type(self).__name__}.{method.__name__}`; {fix}")
        return returns(self, *args, **kwargs)

    return checked


@dataclass
class FusionCaptionerModelOutput(ModelOutput):
    """
    Args:
        fused_hidden_states (`torch.FloatTensor` of shape `(T, L, D)`): joint representations, one a token.
        text_hidden_states (`torch.FloatTensor` of shape `(T, L, D)`): states of the text encoder.
        embeddings (`torch.FloatTensor` of shape `(T, L, D)`): word embeddings.
        image_hidden_states (`torch.FloatTensor` of shape `(B, P, Dv)`): grid regions of the backbone, for video those
            of all frames.
        projected_regions (tuple of `torch.FloatTensor`): what the fusion made of the regions.
        concept_logits (`torch.FloatTensor` of shape `(B, K)`): scores of the concepts, with `num_concepts` or
            `concept_bias` above 0.
        image_embeds (`torch.FloatTensor` of shape `(B, E)`): projected and normalised.
        text_embeds (`torch.FloatTensor` of shape `(T, E)`): projected and normalised.
        attentions (tuple of one `torch.FloatTensor` of shape `(T, heads, L, P)`): where each token looked. After the
            image's regions come its concepts, `num_concepts` of them, and then the regions of a sound.
        cache (`CaptionCache`): `past_key_values` before transformers 5.24, and still readable as that.
        hidden_states (tuple of `torch.FloatTensor` of shape `(T, L, D)`): text states and joint representations, with
            `output_hidden_states=True`.
    """

    fused_hidden_states: torch.Tensor | None = None
    text_hidden_states: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    image_hidden_states: torch.Tensor | None = None
    projected_regions: tuple[torch.Tensor, ...] | None = None
    concept_logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    if CACHE == "cache":
        cache: CaptionCache | None = None
    else:
        past_key_values: CaptionCache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class FusionCaptionerOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): the weighted sum of `loss_terms`, when `labels` are given.
        logits (`torch.FloatTensor` of shape `(T, L, V)`): scores of the word after each token.
        loss_terms (`dict` of scalars): each term that is on, unweighted.
        hidden_states (tuple of `torch.FloatTensor` of shape `(T, L, D)`): text states, joint representations and
            decoder states, with `output_hidden_states=True`.
        attentions, image_embeds, text_embeds, cache: see `FusionCaptionerModelOutput`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    loss_terms: dict[str, torch.Tensor] | None = None
    if CACHE == "cache":
        cache: CaptionCache | None = None
    else:
        past_key_values: CaptionCache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


@dataclass
class FusionCaptionerRetrievalOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): the weighted sum of `loss_terms`, with `return_loss=True`.
        logits_per_image (`torch.FloatTensor` of shape `(B, T)`): scaled similarities.
        logits_per_text (`torch.FloatTensor` of shape `(T, B)`): the same, transposed.
        image_embeds (`torch.FloatTensor` of shape `(B, E)`), text_embeds (`(T, E)`): projected and normalised.
        loss_terms (`dict` of scalars): each term that is on, unweighted.
        hidden_states (tuple of one `torch.FloatTensor` of shape `(T, L, D)`): text states, with
            `output_hidden_states=True`.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    loss_terms: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None

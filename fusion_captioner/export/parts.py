"""
The parts of a captioner that leave torch: the image part runs once per image, the decoder step once per token, and an
output layer behind it where it knows a part of the vocabulary.

B: images, k: texts per image (prompts, beams or samples), S: tokens of a text so far, with this one, V: vocabulary,
C: tokens that an output layer knows, D: hidden size
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from fusion_captioner.causal_layers import State
from fusion_captioner.inference.exported_captioner import IMAGES, PAST, TEXTS
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration

Shape = list[str | int]


class ImagePart(nn.Module):
    """
    `pixel_values (B, 3, H, W)` to what the fusion needs of the images: a tuple of tensors with B rows each. Where
    concepts add to the scores of their words, how likely they are follows, `(B, K)`.
    """

    def __init__(self, captioner: FusionCaptionerForConditionalGeneration) -> None:
        super().__init__()
        self.captioner = captioner

    def forward(self, pixel_values: torch.Tensor) -> State:
        model = self.captioner.model
        hidden_states = self.captioner.get_image_hidden_states(pixel_values)
        concept_logits = model.score_concepts(hidden_states) if model.uses_concepts else None
        projected = model.project_regions(hidden_states, concept_logits=concept_logits)
        if concept_logits is None or not self.captioner.config.concept_bias:
            return projected
        return *projected, concept_logits.sigmoid()


class DecoderStep(nn.Module):
    """
    One token of every text: its logits, and all that is carried from token to token, as inputs and as outputs.

    Texts and images are two dimensions of their own here, so that their numbers may change independently.

    Args:
        captioner: whose step it is.
        counts: how many tensors the regions are, and the states of text encoder, fusion and decoder.
        attends: whether layers attend to earlier tokens, and so must know which are padding. Elsewhere whoever runs
            the step leaves the states at padding as they are.
        gives_logits: false where an output layer follows, for which the step gives hidden states.
    """

    def __init__(
        self, captioner: FusionCaptionerForConditionalGeneration, counts: list[int], attends: bool, gives_logits: bool
    ) -> None:
        super().__init__()
        self.captioner = captioner
        self.counts = counts
        self.attends = attends
        self.gives_logits = gives_logits

    def forward(self, input_ids: torch.Tensor, *tensors: torch.Tensor) -> State:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, k)`): the token.
            tensors: where layers attend, the attention mask first (`torch.LongTensor` of shape `(B, k, S)`), 0 where
                the text is padding; then those of the image part, and the states, as many as `counts`.

        Returns:
            logits `(B*k, V)` or hidden states `(B*k, D)`, images and texts in one dimension, since two would cost a
            copy; and the states after the token, in the order of the inputs.
        """
        mask = None
        if self.attends:
            mask, tensors = tensors[0].flatten(0, 1), tensors[1:]  # (B*k, S)
        groups, start = [], 0
        for count in self.counts:
            groups.append(tensors[start : start + count])
            start += count
        regions, *states = groups
        texts = input_ids.shape[:2]
        text_state, fusion_state, decoder_state = (tuple(state.flatten(0, 1) for state in group) for group in states)

        base = self.captioner.model
        text_states, embeddings, text_state = base.text_encoder(input_ids.reshape(-1, 1), mask, text_state, True)
        fused, _, fusion_state = base.fusion(text_states, *regions, attention_mask=mask, state=fusion_state or None)
        hidden_states, decoder_state = self.captioner.decoder(fused, embeddings, mask, decoder_state, True)
        result = hidden_states[:, 0]
        if self.gives_logits:
            result = self.captioner.lm_head(result)
        states_after = (*text_state, *(fusion_state or ()), *decoder_state)
        return result, *(state.unflatten(0, texts) for state in states_after)


def export_image_part(
    captioner: FusionCaptionerForConditionalGeneration, image_size: tuple[int, int]
) -> tuple[ExportedProgram, list[Shape]]:
    """The image part for images of `(H, W)`, and the shapes of its outputs for the fusion."""
    part = ImagePart(captioner)
    pixel_values = torch.zeros(2, 3, *image_size)
    with torch.no_grad():
        program = torch.export.export(part, (pixel_values,), dynamic_shapes=({0: Dim(IMAGES)},))
        outputs = part(pixel_values)
    projected = outputs[:-1] if captioner.config.concept_bias else outputs
    return program, [[IMAGES, *output.shape[1:]] for output in projected]


def export_output_layer(
    captioner: FusionCaptionerForConditionalGeneration, token_ids: Sequence[int]
) -> ExportedProgram:
    """From hidden states `(T, D)` to logits `(T, C)` of the tokens `token_ids`."""
    whole, ids = captioner.lm_head, torch.tensor(token_ids)
    layer = nn.Linear(whole.in_features, len(ids), bias=whole.bias is not None)
    layer.weight = nn.Parameter(whole.weight.detach()[ids])
    if whole.bias is not None:
        layer.bias = nn.Parameter(whole.bias.detach()[ids])
    with torch.no_grad():
        return torch.export.export(layer, (torch.zeros(2, whole.in_features),), dynamic_shapes=({0: Dim(TEXTS)},))


def export_decoder_step(
    captioner: FusionCaptionerForConditionalGeneration, region_shapes: list[Shape], gives_logits: bool = True
) -> tuple[ExportedProgram, list[dict[str, Any]]]:
    """The decoder step (see [`DecoderStep`]), and its states: their names and shapes."""
    images, texts, past = 2, 3, 4
    sizes = {IMAGES: images, TEXTS: texts, PAST: past}
    config = captioner.config
    dimensions = {
        IMAGES: Dim(IMAGES),
        TEXTS: Dim(TEXTS),
        PAST: Dim(PAST, min=0, max=config.max_position_embeddings - 1),
    }

    state_shapes = [
        _layer_shapes(config.text_encoder_type, config.num_text_encoder_layers, config),
        [[IMAGES, TEXTS, region_shapes[0][2]]] if config.fusion_type == "co_attention" else [],
        _layer_shapes(config.decoder_type, config.num_hidden_layers, config),
    ]
    shapes = [*region_shapes, *(shape for group in state_shapes for shape in group)]
    attends = "transformer" in (config.text_encoder_type, config.decoder_type)
    tensors = [torch.zeros([sizes[size] if isinstance(size, str) else size for size in shape]) for shape in shapes]
    inputs = [torch.ones(images, texts, dtype=torch.long), *tensors]
    dynamic = [{axis: dimensions[size] for axis, size in enumerate(shape) if size in dimensions} for shape in shapes]
    if attends:
        inputs.insert(1, torch.ones(images, texts, past + 1, dtype=torch.long))
        dynamic.insert(0, {0: dimensions[IMAGES], 1: dimensions[TEXTS], 2: dimensions[PAST] + 1})
    dynamic_shapes = ({0: dimensions[IMAGES], 1: dimensions[TEXTS]}, tuple(dynamic))
    step = DecoderStep(captioner, [len(region_shapes), *map(len, state_shapes)], attends, gives_logits)
    with torch.no_grad():
        program = torch.export.export(step, tuple(inputs), dynamic_shapes=dynamic_shapes)
    names = ("text", "fusion", "decoder")
    states = [
        {"name": f"{name}_state_{index}", "shape": shape}
        for name, group in zip(names, state_shapes)
        for index, shape in enumerate(group)
    ]
    return program, states


def _layer_shapes(layer_type: str, num_layers: int, config: Any) -> list[Shape]:
    """Shapes of the state that `causal_layers.py` carries, behind images and texts."""
    if layer_type == "embedding":
        return []
    if layer_type == "transformer":
        width = config.hidden_size // config.num_attention_heads
        return [[IMAGES, TEXTS, config.num_attention_heads, PAST, width] for _ in range(2 * num_layers)]
    return [[IMAGES, TEXTS, num_layers, config.hidden_size] for _ in range(2 if layer_type == "lstm" else 1)]

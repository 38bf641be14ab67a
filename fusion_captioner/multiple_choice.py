"""
Multiple-choice head: which of several answers to a question about an image, or about the frames of a video, is right.

B: questions, N: choices, padded where there are fewer, L: tokens
"""

import torch
from torch import nn
from transformers.modeling_outputs import MultipleChoiceModelOutput

from .configuration_fusion_captioner import FusionCaptionerConfig
from .modeling_outputs import returns_output
from .optional_modalities import OptionalModalitiesModel, classification_layers


class FusionCaptionerForMultipleChoice(OptionalModalitiesModel):
    """
    A score for each choice, from the fused state of its text: the question, subtitles if there are any, and the
    choice. The image is encoded once for all choices. Without image and sound, only the texts are scored.

    Example:

        >>> inputs = processor(images=photos, text=questions, choices=choices, return_tensors="pt")
        >>> model(**inputs).logits.argmax(dim=1)
        tensor([2, 0])
    """

    _auto_class = "AutoModelForMultipleChoice"

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__(config)
        self.classifier = classification_layers(config, 1)
        self.post_init()

    @returns_output
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_audio: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> MultipleChoiceModelOutput:
        """
        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(B, N, L)`): a choice of only padding is none.
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)` or `(B, F, 3, H, W)`, *optional*), or
            image_hidden_states (`torch.FloatTensor` of shape `(B, P, Dv)` or `(B, F, P, Dv)`).
            input_features (`torch.FloatTensor` with B rows, *optional*): sounds, as the audio encoder takes them.
            has_image, has_audio (`torch.BoolTensor` of shape `(B,)`, *optional*): False for rows without one.
            labels (`torch.LongTensor` of shape `(B,)`, *optional*): number of the right choice, -100 where unknown.

        Returns:
            `logits` of shape `(B, N)`: the lowest number where there is no choice.

        Raises:
            ValueError: if `input_ids` is missing or has another shape, a question has no choice, or a label is none of
                its choices.
        """
        if input_ids is None or input_ids.dim() != 3 or 0 in input_ids.shape:
            found = "is missing" if input_ids is None else f"has the shape {tuple(input_ids.shape)}"
            raise ValueError(f"`input_ids` {found}; it must be (questions, choices, tokens), none of them 0.")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` {tuple(attention_mask.shape)} must have the shape of `input_ids` "
                f"{tuple(input_ids.shape)}."
            )
        valid = torch.ones(input_ids.shape[:2], dtype=torch.bool, device=input_ids.device)
        if attention_mask is not None:
            valid = attention_mask.any(dim=-1)
        self._check_choices(valid, labels)
        state, attentions, hidden_states = self.fuse(
            input_ids.flatten(0, 1),  # type: ignore[arg-type]  # whole numbers as they were
            None if attention_mask is None else attention_mask.flatten(0, 1),
            pixel_values,
            image_hidden_states,
            input_features,
            has_image,
            has_audio,
            texts_per_row=input_ids.shape[1],
            keeps_text=True,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        scores = self.classifier(state).view(input_ids.shape[:2])
        logits = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
            loss = loss / (labels != -100).sum().clamp(min=1)
        return MultipleChoiceModelOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)

    @staticmethod
    def _check_choices(valid: torch.Tensor, labels: torch.Tensor | None) -> None:
        questions, choices = valid.shape
        if labels is not None and labels.shape != (questions,):
            raise ValueError(
                f"`labels` {tuple(labels.shape)} must have the shape ({questions},): the number of the right choice."
            )
        # as for token ids: on a GPU the checks would stall the device
        if valid.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if not valid.any(dim=1).all():
            raise ValueError(
                f"question {int(valid.any(dim=1).long().argmin())} of the batch has no choice: its `attention_mask` "
                "is all zeros; leave the question out, or give it choices."
            )
        if labels is None:
            return
        known = labels != -100
        right = labels.clamp(0, choices - 1)
        wrong = known & ((labels != right) | ~valid[torch.arange(questions), right])
        if wrong.any():
            row = int(wrong.long().argmax())
            raise ValueError(
                f"label {int(labels[row])} of question {row} is none of its {int(valid[row].sum())} choices; number "
                "them from 0, and use -100 where the right one is unknown."
            )


__all__ = ["FusionCaptionerForMultipleChoice"]

"""
Retrieval head: images and texts in one space to search in, and a closer look at the best candidates.

B: images, T: texts, L: tokens, P: regions, Dv: width of a region, D: hidden size, E: projection width, N: pairs
"""

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .alignment import AlignmentLosses
from .configuration_fusion_captioner import FusionCaptionerConfig
from .fusion import count_texts
from .losses import weighted_sum
from .modeling_fusion_captioner import FusionCaptionerModel, FusionCaptionerPreTrainedModel
from .modeling_outputs import FusionCaptionerModelOutput, FusionCaptionerRetrievalOutput, returns_output


class FusionCaptionerForImageTextRetrieval(FusionCaptionerPreTrainedModel):
    """
    Two towers that embed images and texts in one space, trained by the contrastive loss (`contrastive_loss_type`:
    InfoNCE or hinge). With a `matching_loss_weight` above 0 there is also a matching score, which re-ranks the best
    candidates of the towers.

    Texts end in EOS, whose state may stand for all of them (`text_pooling`): `processor(text=..., add_eos=True)`.

    Raises:
        ValueError: if `contrastive_loss_weight` is 0.

    Example:

        >>> inputs = processor(images=photos, text=captions, add_eos=True, return_tensors="pt")
        >>> model(**inputs).logits_per_image.argmax(dim=1)
        tensor([0, 1])
    """

    _auto_class = "AutoModelForZeroShotImageClassification"
    # the loss compares the rows of one batch: accumulated batches are averaged, not weighted by rows
    accepts_loss_kwargs = False

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__(config)
        if not config.contrastive_loss_weight:
            raise ValueError(
                f"`contrastive_loss_weight` ({config.contrastive_loss_weight}) must be above 0 for retrieval: it "
                "trains the space that is searched; set it, for example by `from_pretrained(..., "
                "contrastive_loss_weight=1.0)`."
            )
        self.model = FusionCaptionerModel(config)
        self.alignment = AlignmentLosses(config, self.model.image_encoder.hidden_size)
        self.post_init()

    def get_image_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See `FusionCaptionerModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See `FusionCaptionerModel.get_text_features`."""
        return self.model.get_text_features(*args, **kwargs)

    def rerank(
        self,
        pairs: torch.LongTensor,
        text_hidden_states: torch.Tensor,
        image_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Score how well texts and images match, by looking at both together. This costs more than comparing embeddings,
        so it is meant for the best candidates. Texts and images that are in several pairs are encoded only once.

        Args:
            pairs (`torch.LongTensor` of shape `(N, 2)`): row of the text and row of the image of each pair.
            text_hidden_states (`torch.FloatTensor` of shape `(T, L, D)`): `get_text_features(...).last_hidden_state`.
            image_hidden_states (`torch.FloatTensor` of shape `(B, P, Dv)`): `get_image_hidden_states(...)`.
            attention_mask (`torch.LongTensor` of shape `(T, L)`, *optional*): of the texts.

        Returns:
            matching logits `(N,)`.

        Raises:
            ValueError: if the model has no matching score, or `pairs` has another shape.
        """
        if not self.config.matching_loss_weight:
            raise ValueError(
                f"`matching_loss_weight` ({self.config.matching_loss_weight}) is 0, so that the model has no matching "
                "score to re-rank by; train it with a `matching_loss_weight` above 0."
            )
        if pairs.dim() != 2 or pairs.shape[1] != 2:
            raise ValueError(
                f"`pairs` {tuple(pairs.shape)} must have the shape (pairs, 2): row of text, row of image."
            )
        texts, images = pairs.to(text_hidden_states.device).unbind(dim=1)
        needed, images = images.unique(return_inverse=True)
        regions = self.model.flatten_frames(self.model.check_regions(image_hidden_states[needed]))
        encoded = self._encoded(text_hidden_states, regions)
        return self.alignment.matching(texts, images, encoded, attention_mask, self.model.fuse)

    @returns_output
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        return_loss: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> FusionCaptionerRetrievalOutput:
        """
        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(T, L)`).
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)` or `(B, F, 3, H, W)`), or
            image_hidden_states (`torch.FloatTensor` of shape `(B, P, Dv)` or `(B, F, P, Dv)`).
            return_loss (`bool`): compute the loss. The texts must then belong to the images: k texts for each
                image, next to each other. Without it any number of texts is compared with any number of images.

        Raises:
            ValueError: if text or image is missing; with `return_loss`, if the texts do not divide among the images.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        input_ids = self.model.check_input_ids(input_ids)
        regions = self.model.flatten_frames(self.model.image_regions(pixel_values, image_hidden_states))
        image_embeds = self.model.embed_image(regions)
        text_states, _, _ = self.model.text_encoder(input_ids, attention_mask)
        text_embeds = self.model.embed_text(text_states, attention_mask)
        with torch.autocast(text_embeds.device.type, enabled=False):  # a similarity is multiplied by up to 100
            logits_per_text = self.alignment.inverse_temperature * text_embeds @ image_embeds.T

        loss, loss_terms = None, None
        if return_loss:
            count_texts(len(text_embeds), len(image_embeds))
            encoded = self._encoded(text_states, regions, image_embeds=image_embeds, text_embeds=text_embeds)
            loss_terms = self.alignment(encoded, attention_mask, self.model.fuse)
            loss = weighted_sum(loss_terms, self.config)
        return FusionCaptionerRetrievalOutput(
            loss=loss,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            loss_terms=loss_terms,
            hidden_states=(text_states,) if output_hidden_states else None,
        )

    def _encoded(self, text_states: torch.Tensor, regions: torch.Tensor, **embeds: Any) -> FusionCaptionerModelOutput:
        """What the losses read of texts and images, which are projected for the fusion only where it is needed."""
        fuses = self.config.matching_loss_weight and self.config.matching_type == "fusion"
        return FusionCaptionerModelOutput(
            text_hidden_states=text_states,
            image_hidden_states=regions,
            projected_regions=self.model.project_regions(regions) if fuses else None,
            **embeds,
        )


__all__ = ["FusionCaptionerForImageTextRetrieval"]

"""
Fusion Captioner: the base model and the captioning head. START HERE. The other heads have a file each, which
`auto_classes` at the end names.

    pixel_values ─ image encoder ─► regions ─┐
                                             ├─ fusion ─► joint ─ decoder ─► lm_head ─► logits
    input_ids ──── text encoder ──► states ──┘

B: images, T = B·k: texts (the k texts of an image stand together; k = 1 unless said), L: tokens, P: regions,
Dv: width of a region as the backbone gives it, D: hidden size, E: projection width, V: vocabulary,
A, Da: regions of a sound, and their width, K: concepts

Under teacher forcing every part runs over the whole text in one call; there is no loop over time steps.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .alignment import AlignmentLosses
from .audio_encoder import AudioEncoder
from .causal_layers import SequenceDropout, initialize_recurrent
from .concepts import ConceptHead, ConceptRegions, unsaid
from .configuration_fusion_captioner import FusionCaptionerConfig
from .decoder import CaptionDecoder
from .fusion import FUSIONS, count_texts
from .generation_fusion_captioner import CACHE, CaptionCache, FusionCaptionerGenerationMixin
from .image_encoder import ImageEncoder, limited_weights
from .losses import caption_loss, weighted_sum
from .matching import WordRegionMatching
from .modeling_outputs import FusionCaptionerModelOutput, FusionCaptionerOutput, returns_output
from .placed_weights import compute_dtype, execution_device, own_parameter
from .text_encoder import TEXT_POOLINGS, TextEncoder

# Words are scored in multiples of so many.
LABEL_BLOCK = 64


class FusionCaptionerPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading and saving, for every head."""

    config_class = FusionCaptionerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012 (transformers' own form)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ImageEncoder", "AudioEncoder", "CausalLSTM", "CausalGRU", "TransformerLayer"]  # noqa: RUF012
    _is_stateful = True

    def __init__(self, config: FusionCaptionerConfig) -> None:
        # `from_pretrained` sets the fields that it is given one by one, past the checks of what fits together
        config.validate_architecture()
        super().__init__(config)

    @classmethod
    def get_init_context(cls, *args, **kwargs) -> list:
        """As in transformers: what `from_pretrained` builds a model in."""
        return [*super().get_init_context(*args, **kwargs), limited_weights()]

    def save_pretrained(self, *args, **kwargs) -> None:
        """As in transformers; the code of all heads is saved next to the model, so that each of them loads from it
        where this package is not installed."""
        classes: dict[str, type] = {"AutoConfig": FusionCaptionerConfig, **auto_classes()}
        self.config.auto_map = {
            auto_class: f"{own_class.__module__.rpartition('.')[2]}.{own_class.__name__}"
            for auto_class, own_class in classes.items()
        }
        super().save_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM | nn.GRU):
            initialize_recurrent(module)
            return
        if isinstance(module, AlignmentLosses) and hasattr(module, "logit_scale"):
            init.constant_(module.logit_scale, float(self.config.logit_scale_init_value))
        if isinstance(module, WordRegionMatching):
            init.constant_(module.log_scale, math.log(module.SCALE))
            init.constant_(module.threshold, module.THRESHOLD)
        if isinstance(module, ConceptHead | ConceptRegions):
            module.initialize()
        if isinstance(module, FusionCaptionerModel) and module.frame_embedding is not None:
            init.zeros_(module.frame_embedding)
        super()._init_weights(module)

    @property
    def device(self) -> torch.device:
        """Where the model computes: for offloaded weights, where accelerate brings them."""
        device = super().device
        return execution_device(self) or device if device.type == "meta" else device

    def _returns_hidden_states(self, output_hidden_states: bool | None) -> bool:
        """Whether a call returns them: as it says, or else as the config says."""
        return bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)

    @property
    def _image_encoder(self) -> ImageEncoder:
        return self.base_model.image_encoder  # type: ignore[return-value]

    def freeze_image_encoder(self) -> None:
        """Stop training the image encoder; its BatchNorm stays in evaluation mode, after `train()` too."""
        self._image_encoder.set_frozen(True)

    def unfreeze_image_encoder(self, fix_batch_norm: bool = False, num_frozen_layers: int = 0) -> None:
        """Train the image encoder again; its BatchNorm stays in evaluation mode where `fix_batch_norm`, and its first
        `num_frozen_layers` stay as they are."""
        self._image_encoder.set_frozen(False, fix_batch_norm, num_frozen_layers)

    def get_image_hidden_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Grid regions `(B, P, Dv)` of `pixel_values (B, 3, H, W)`, or `(B, F, P, Dv)` of `(B, F, 3, H, W)`: what the
        models take as `image_hidden_states` in place of pixels."""
        return self._image_encoder(pixel_values)

    @torch.no_grad()
    def predict_concepts(
        self, pixel_values: torch.Tensor | None = None, image_hidden_states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        How likely each concept is in an image.

        Args:
            pixel_values, image_hidden_states: see `FusionCaptionerModel.forward`.

        Returns:
            probabilities `(B, K)`; `config.concept_ids` are the concepts' tokens, in the same order.

        Raises:
            ValueError: if the model has no concept head.

        Example:

            >>> best = model.predict_concepts(**inputs)[0].topk(5).indices
            >>> processor.tokenizer.convert_ids_to_tokens([model.config.concept_ids[place] for place in best])
            ['dog', 'snow', 'brown', 'runs', 'grass']
        """
        base: FusionCaptionerModel = self.base_model  # type: ignore[assignment]
        if base.concept_head is None:
            raise ValueError(
                "this model has no concept head, since `num_concepts`, `concept_loss_weight` and `concept_bias` are "
                "0; train with one of them above 0."
            )
        return base.concept_head(base.flatten_frames(base.image_regions(pixel_values, image_hidden_states))).sigmoid()


class FusionCaptionerModel(FusionCaptionerPreTrainedModel):
    """The base of all heads: image encoder, text encoder, fusion, projections and, where configured, audio encoder."""

    _auto_class = "AutoModel"

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__(config)
        self.image_encoder = ImageEncoder(config.vision_config)  # type: ignore[arg-type]  # validated by now
        image_width = self.image_encoder.hidden_size
        frames = torch.zeros(config.max_frames, 1, image_width) if config.max_frames else None
        self.frame_embedding = None if frames is None else nn.Parameter(frames)
        self.image_dropout = SequenceDropout(config.image_dropout)
        self.region_projection = nn.Linear(image_width, config.hidden_size)
        has_concepts = bool(config.num_concepts or config.concept_loss_weight or config.concept_bias)
        self.concept_head = ConceptHead(config, image_width) if has_concepts else None
        self.concept_regions = ConceptRegions(config) if config.num_concepts else None
        self.audio_encoder: AudioEncoder | None = None
        if config.audio_config is not None:
            self.audio_encoder = AudioEncoder(config.audio_config, config.num_audio_regions)  # type: ignore[arg-type]
            self.audio_projection = nn.Linear(self.audio_encoder.hidden_size, config.hidden_size)
        self.text_encoder = TextEncoder(config)
        self.fusion = FUSIONS[config.fusion_type](config)
        self.image_projection = nn.Linear(image_width, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    @property
    def fusion_dtype(self) -> torch.dtype:
        """The type of everything behind the encoders of images and sounds, which may have others."""
        return compute_dtype(self.region_projection, self.text_encoder, self.fusion)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_encoder.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.embedding = value  # type: ignore[assignment]  # transformers gives an embedding

    def flatten_frames(self, image_hidden_states: torch.Tensor) -> torch.Tensor:
        """Regions `(B, P, Dv)` as they are; those of video, `(B, F, P, Dv)`, told apart and joined to `(B, F·P,
        Dv)`."""
        if image_hidden_states.dim() == 3:
            return image_hidden_states
        if self.frame_embedding is None or image_hidden_states.shape[1] > len(self.frame_embedding):
            raise ValueError(
                f"{image_hidden_states.shape[1]} frames are more than `max_frames` ({self.config.max_frames}); "
                "sample fewer frames, or train with a larger `max_frames`."
            )
        frames = own_parameter(self, "frame_embedding")[: image_hidden_states.shape[1]]
        return (image_hidden_states + frames).flatten(1, 2)

    @property
    def uses_concepts(self) -> bool:
        """Whether captions depend on what the concept head finds, which else only learns."""
        return bool(self.config.num_concepts or self.config.concept_bias)

    def score_concepts(self, image_hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits of the concepts `(B, K)` from `image_hidden_states`; `None` where there is no concept head."""
        if self.concept_head is None:
            return None
        return self.concept_head(self.image_dropout(self.flatten_frames(image_hidden_states.to(self.fusion_dtype))))

    def word_bias(self, concept_logits: torch.Tensor | None, input_ids: torch.Tensor) -> torch.Tensor | None:
        """What concepts of logits `(B, K)` add to the scores of words in texts `(T, L)`, `(T, V)`; `None` where they
        add nothing."""
        if concept_logits is None or self.concept_head is None or not self.config.concept_bias:
            return None
        return self.concept_head.word_bias(concept_logits, input_ids)

    def embed_regions(
        self, image_hidden_states: torch.Tensor, concept_logits: torch.Tensor | None = None
    ) -> torch.Tensor:
        """From `image_hidden_states` to regions `(B, P + num_concepts, D)` for the fusion, the concepts that were
        found last; `concept_logits` spares scoring them here."""
        regions = self.flatten_frames(image_hidden_states.to(self.fusion_dtype))
        embedded = self.region_projection(self.image_dropout(regions))
        if self.concept_head is None or self.concept_regions is None:
            return embedded
        logits = self.score_concepts(image_hidden_states) if concept_logits is None else concept_logits
        concepts = self.concept_regions(logits, self.concept_head.token_ids, self.text_encoder.embedding)
        return torch.cat((embedded, concepts), dim=1)

    def embed_audio(self, audio_hidden_states: torch.Tensor) -> torch.Tensor:
        """From `audio_hidden_states (B, A, Da)` to further regions `(B, A, D)` for the fusion."""
        return self.audio_projection(audio_hidden_states.to(self.fusion_dtype))

    def project_regions(
        self,
        image_hidden_states: torch.Tensor,
        audio_hidden_states: torch.Tensor | None = None,
        concept_logits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """What the fusion needs of images and, where there are any, their sounds: one row per image."""
        regions = self.embed_regions(image_hidden_states, concept_logits)
        if audio_hidden_states is not None:
            if audio_hidden_states.shape[0] != regions.shape[0]:
                raise ValueError(
                    f"{len(audio_hidden_states)} sounds do not fit {len(regions)} images; give one sound an image."
                )
            regions = torch.cat((regions, self.embed_audio(audio_hidden_states)), dim=1)
        return self.fusion.project_regions(regions)

    def fuse(
        self, text_states: torch.Tensor, projected: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Joint representations `(T, L, D)` of text states and what `project_regions` made of the images."""
        return self.fusion(text_states, *projected, attention_mask=attention_mask)[0]

    def get_audio_hidden_states(self, input_features: torch.Tensor) -> torch.Tensor:
        """
        Regions `(B, A, Da)` of sounds: what the models take as `audio_hidden_states` in place of `input_features`.

        Raises:
            ValueError: if the model has no audio encoder.
        """
        if self.audio_encoder is None:
            raise ValueError(
                f"`input_features` {tuple(input_features.shape)} are given to a model without audio encoder; leave "
                "them out, or build the model with `audio_config`."
            )
        return self.audio_encoder(input_features)

    @returns_output
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Image embeddings in the space shared with texts.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`), or
            image_hidden_states (`torch.FloatTensor` of shape `(B, P, Dv)`).

        Returns:
            `last_hidden_state`: the regions; `pooler_output (B, E)`: the embedding, of length 1; with
            `output_hidden_states=True`, `hidden_states`: the regions alone.
        """
        regions = self.flatten_frames(self.image_regions(pixel_values, image_hidden_states))
        return BaseModelOutputWithPooling(
            last_hidden_state=regions,
            pooler_output=self.embed_image(regions),
            hidden_states=(regions,) if self._returns_hidden_states(output_hidden_states) else None,
        )

    @returns_output
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Text embeddings in the space shared with images.

        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(T, L)`): texts that end in EOS.

        Returns:
            `last_hidden_state (T, L, D)`: the states; `pooler_output (T, E)`: the embedding, of length 1; with
            `output_hidden_states=True`, `hidden_states`: word embeddings and states.
        """
        states, words, _ = self.text_encoder(input_ids, attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.embed_text(states, attention_mask),
            hidden_states=(words, states) if self._returns_hidden_states(output_hidden_states) else None,
        )

    @returns_output
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        past_key_values: CaptionCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_embeds: bool = True,
        cache: CaptionCache | None = None,
        **kwargs,
    ) -> FusionCaptionerModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(T, L)`).
            attention_mask (`torch.LongTensor` of shape `(T, past + L)`, *optional*): 1 at tokens, 0 at padding.
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)` or `(B, F, 3, H, W)`), or
            image_hidden_states (`torch.FloatTensor` of shape `(B, P, Dv)` or `(B, F, P, Dv)`).
            input_features (`torch.FloatTensor` with B rows, *optional*): sounds, as the audio encoder takes them, or
            audio_hidden_states (`torch.FloatTensor` of shape `(B, A, Da)`): what the audio encoder made of them.
            cache, or past_key_values (`CaptionCache`, *optional*): of the tokens so far, with images and sounds in it.
            use_cache, output_attentions, output_hidden_states (`bool`).
            return_embeds (`bool`): whether `image_embeds` and `text_embeds` are wanted.

        Raises:
            ValueError: if text or image is missing, both forms of the image are given, or rows do not match.
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = self._returns_hidden_states(output_hidden_states)
        input_ids = self.check_input_ids(input_ids)
        cache = past_key_values if cache is None else cache
        if cache is not None and not isinstance(cache, CaptionCache):
            raise ValueError(
                f"`cache` ({type(cache).__name__}) must be a CaptionCache, as this model returns it; leave "
                "it out of the first call."
            )
        regions, concept_logits = None, None
        if cache is None:
            regions = self.flatten_frames(self.image_regions(pixel_values, image_hidden_states))
            self._check_rows(input_ids, regions)
            if input_features is not None:
                audio_hidden_states = self.get_audio_hidden_states(input_features)
            concept_logits = self.score_concepts(regions) if self.uses_concepts else None
            projected = self.project_regions(regions, audio_hidden_states, concept_logits)
            cache = CaptionCache(projected, concept_logits) if use_cache else None
        elif any(x is not None for x in (pixel_values, image_hidden_states, input_features, audio_hidden_states)):
            raise ValueError(
                "`cache` holds the images already, and their sounds; leave out `pixel_values`, "
                "`image_hidden_states`, `input_features` and `audio_hidden_states`."
            )
        else:
            projected = cache.projected_regions
            self._check_rows(input_ids, projected[0])

        text_states, embeddings, text_state = self.text_encoder(
            input_ids, attention_mask, None if cache is None else cache.text_state, cache is not None
        )
        fused, weights, fusion_state = self.fusion(
            text_states,
            *projected,
            attention_mask=attention_mask,
            state=None if cache is None else cache.fusion_state,
            output_attentions=output_attentions,
        )
        if cache is not None:
            cache.text_state, cache.fusion_state = text_state, fusion_state
            cache.seen_tokens += input_ids.shape[1]
        image_embeds, text_embeds = None, None
        if return_embeds and regions is not None:
            image_embeds = self.embed_image(regions)
            text_embeds = self.embed_text(text_states, attention_mask)
        return FusionCaptionerModelOutput(
            fused_hidden_states=fused,
            text_hidden_states=text_states,
            embeddings=embeddings,
            image_hidden_states=regions,
            projected_regions=projected,
            concept_logits=concept_logits,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            attentions=(weights,) if weights is not None else None,
            **{CACHE: cache},
            hidden_states=(text_states, fused) if output_hidden_states else None,
        )

    def image_regions(
        self, pixel_values: torch.Tensor | None, image_hidden_states: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Regions `(B, P, Dv)`, or `(B, F, P, Dv)` of video, from either form of the images; see `forward`.

        Raises:
            ValueError: if both forms or neither are given, or the images do not fit this model.
        """
        if pixel_values is not None and image_hidden_states is not None:
            raise ValueError("the model takes either `pixel_values` or `image_hidden_states`, and got both.")
        if pixel_values is not None:
            return self.image_encoder(pixel_values)
        if image_hidden_states is None:
            raise ValueError("the model takes either `pixel_values` or `image_hidden_states`, and got neither.")
        return self.check_regions(image_hidden_states)

    def check_input_ids(self, input_ids: torch.LongTensor | None) -> torch.LongTensor:
        """The texts, as they are.

        Raises:
            ValueError: if there is none, one has no token, or one has a token outside the vocabulary.
        """
        if input_ids is None or input_ids.shape[-1] == 0:
            raise ValueError(
                f"`input_ids` {'is missing' if input_ids is None else 'holds no token'}; give at least the BOS token "
                "of each text."
            )
        self.check_token_ids(input_ids)
        return input_ids

    def check_regions(self, image_hidden_states: torch.Tensor) -> torch.Tensor:
        """The regions in the weights' data type.

        Raises:
            ValueError: if they are not as wide as this model's image encoder gives them.
        """
        if image_hidden_states.shape[-1] != self.image_encoder.hidden_size:
            raise ValueError(
                f"`image_hidden_states` are {image_hidden_states.shape[-1]} wide and this model's image encoder gives "
                f"{self.image_encoder.hidden_size}; compute them with `get_image_hidden_states` of this model."
            )
        return image_hidden_states.to(self.fusion_dtype)

    def embed_image(self, regions: torch.Tensor) -> torch.Tensor:
        """From regions `(B, P, Dv)` to embeddings `(B, E)` of length 1."""
        pooled = self.image_dropout(regions.mean(dim=1, keepdim=True)).squeeze(1)
        return nn.functional.normalize(self.image_projection(pooled).float(), dim=-1).to(self.fusion_dtype)

    def embed_text(self, states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """From states `(T, L, D)` of the text encoder to embeddings `(T, E)` of length 1."""
        pooled = TEXT_POOLINGS[self.config.text_pooling](states, attention_mask)
        return nn.functional.normalize(self.text_projection(pooled).float(), dim=-1).to(self.fusion_dtype)

    @staticmethod
    def _check_rows(input_ids: torch.Tensor, images: torch.Tensor) -> None:
        """In an export the number of rows is open, and checking it would fix it."""
        if not torch.compiler.is_compiling():
            count_texts(len(input_ids), len(images))

    def check_token_ids(self, token_ids: torch.Tensor) -> None:
        """On a CPU an id out of range is read from behind the embedding's memory or fails without naming the id; on
        a GPU the check itself would stall the device, which reports the id by an assertion of its own."""
        if token_ids.device.type == "cpu" and not torch.compiler.is_compiling() and token_ids.numel():
            low, high = torch.aminmax(token_ids)
            vocab_size = self.config.vocab_size
            if low < 0 or high >= vocab_size:
                wrong = int(low) if low < 0 else int(high)
                raise ValueError(
                    f"token id {wrong} is outside the vocabulary of {vocab_size} (`vocab_size`); use the tokenizer "
                    "that belongs to this model, or `model.resize_token_embeddings(len(tokenizer))`."
                )


class FusionCaptionerForConditionalGeneration(FusionCaptionerPreTrainedModel, FusionCaptionerGenerationMixin):
    """
    The captioner: decoder and language-model head on the base model. With a prompt it answers questions, continues
    reports and chats.

    Example:

        >>> inputs = processor(images="photo.jpg", return_tensors="pt")
        >>> processor.batch_decode(model.generate(**inputs, num_beams=3), skip_special_tokens=True)
        ['a brown dog runs through the snow']
    """

    _auto_class = "AutoModelForImageTextToText"
    _tied_weights_keys = {"lm_head.weight": "model.text_encoder.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__(config)
        self.model = FusionCaptionerModel(config)
        self.alignment = AlignmentLosses(config, self.model.image_encoder.hidden_size)
        self.decoder = CaptionDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def get_image_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See `FusionCaptionerModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See `FusionCaptionerModel.get_text_features`."""
        return self.model.get_text_features(*args, **kwargs)

    def hidden_image(self, rows: int) -> torch.Tensor:
        """`image_hidden_states (rows, 1, Dv)` that show nothing: what `modality_dropout` puts in an image's place."""
        return torch.zeros(rows, 1, self.model.image_encoder.hidden_size, device=self.device)

    def get_matching_scores(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Probability, by the matching head, that each text belongs to its image. Texts must end in EOS.

        Args:
            input_ids, attention_mask, pixel_values, image_hidden_states: see `FusionCaptionerModel.forward`.

        Returns:
            probabilities `(T,)`.

        Raises:
            ValueError: if the model has no matching head.
        """
        if not self.config.matching_loss_weight:
            raise ValueError("`matching_loss_weight` (0) gave this model no matching head; train with it above 0.")
        regions = self.model.flatten_frames(self.model.image_regions(pixel_values, image_hidden_states))
        states, _, _ = self.model.text_encoder(self.model.check_input_ids(input_ids), attention_mask)
        texts = torch.arange(len(states), device=states.device)
        images = texts // count_texts(len(states), len(regions))
        outputs = FusionCaptionerModelOutput(
            text_hidden_states=states,
            image_hidden_states=regions,
            projected_regions=self.model.project_regions(regions),
        )
        return self.alignment.matching(texts, images, outputs, attention_mask, self.model.fuse).sigmoid()

    @returns_output
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        past_key_values: CaptionCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache: CaptionCache | None = None,
        **kwargs,
    ) -> FusionCaptionerOutput:
        """
        Args:
            input_ids, attention_mask, pixel_values, image_hidden_states, input_features, audio_hidden_states,
            cache or past_key_values, use_cache: see `FusionCaptionerModel.forward`.
            labels (`torch.LongTensor` of shape `(T, L)`, *optional*): aligned with `input_ids`, -100 on prompt and
                padding; the model shifts them.
            logits_to_keep (`int`, or `torch.BoolTensor` of shape `(T, L)`): logits of only that many last tokens; 0:
                of all. Or of the tokens that are true, `(M, V)` for M of them.
            skip_logits (`bool`): return no logits, only the loss: words are then scored where there is a label, which
                spares the padding.
            num_items_in_batch: labelled words over all gradient-accumulation steps and processes, which `Trainer`
                passes: each term is then this batch's share of it, by words, and `Trainer` sums the shares.

        Raises:
            ValueError: as the base model, and for labels that do not fit `input_ids` or the vocabulary.
        """
        if use_cache is None:
            # what is exported is one whole text
            whole = self.training or labels is not None or torch.compiler.is_exporting()
            use_cache = self.config.use_cache and not whole
        cache = past_key_values if cache is None else cache
        is_first = cache is None or not cache.is_initialized
        if self.training and self.config.modality_dropout and cache is None:
            regions = self.model.image_regions(pixel_values, image_hidden_states)
            shown = torch.rand(len(regions), device=regions.device) >= self.config.modality_dropout
            image_hidden_states, pixel_values = regions * shown.view(-1, *[1] * (regions.dim() - 1)), None
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_hidden_states=image_hidden_states,
            input_features=input_features,
            audio_hidden_states=audio_hidden_states,
            cache=cache,
            use_cache=use_cache,
            output_attentions=output_attentions,
            return_embeds=labels is not None and self.alignment.is_active,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        assert input_ids is not None  # or the base model had raised an error
        cache = getattr(outputs, CACHE)
        hidden_states, decoder_state = self.decoder(
            outputs.fused_hidden_states,
            outputs.embeddings,
            attention_mask,
            None if cache is None else cache.decoder_state,
            cache is not None,
        )
        if cache is not None:
            cache.decoder_state = decoder_state
        if skip_logits and labels is None:
            raise ValueError("`skip_logits` leaves nothing to return without `labels`; give them, or leave it out.")
        if cache is None:
            word_bias = self.model.word_bias(outputs.concept_logits, input_ids)
        else:
            word_bias = self.model.word_bias(cache.concept_logits, input_ids) if is_first else cache.word_bias
            cache.word_bias = None if word_bias is None else word_bias.scatter(1, input_ids, 0.0)
        logits = None
        if not skip_logits:
            is_kept, bias = logits_to_keep, None
            if isinstance(is_kept, int):
                is_kept = torch.zeros_like(input_ids, dtype=torch.bool)
                is_kept[:, -logits_to_keep:] = True
                kept = hidden_states[:, -logits_to_keep:]
            else:
                kept = hidden_states[is_kept]
            if word_bias is not None:
                bias = unsaid(word_bias, input_ids, *is_kept.nonzero(as_tuple=True)).view(*kept.shape[:-1], -1)
            logits = self._score_words(kept, bias)

        loss, loss_terms = None, None
        if labels is not None:
            loss_terms = self._loss_terms(outputs, hidden_states, logits, input_ids, labels, attention_mask, word_bias)
            if self.config.concept_loss_weight:
                concept_logits = outputs.concept_logits
                if concept_logits is None:
                    concept_logits = self.model.score_concepts(outputs.image_hidden_states)
                # the images as given: `outputs` may have frame embeddings added, and so no zeros where they are hidden
                loss_terms["concept"] = self.model.concept_head.loss(
                    concept_logits, input_ids, labels, attention_mask, image_hidden_states
                )
            if num_items_in_batch is not None:
                share = (labels[:, 1:] != -100).sum() / num_items_in_batch
                loss_terms = {name: term * share for name, term in loss_terms.items()}
            loss = weighted_sum(loss_terms, self.config)
        return FusionCaptionerOutput(
            loss=loss,
            logits=logits,
            loss_terms=loss_terms,
            **{CACHE: cache},
            hidden_states=None if outputs.hidden_states is None else (*outputs.hidden_states, hidden_states),
            attentions=outputs.attentions,
            image_embeds=outputs.image_embeds,
            text_embeds=outputs.text_embeds,
        )

    def next_logits(self, token_ids: torch.Tensor, mask: torch.Tensor | None, cache: CaptionCache) -> torch.Tensor:
        """What `forward` gives behind the last token, and does to the cache, for texts that begin, or go on by one
        token: `(T, L)` → `(T, V)`."""
        if not cache.is_initialized:
            self.model.check_input_ids(token_ids)
            count_texts(len(token_ids), len(cache.projected_regions[0]))
            cache.word_bias = self.model.word_bias(cache.concept_logits, token_ids)
        text_states, embeddings, cache.text_state = self.model.text_encoder(token_ids, mask, cache.text_state, True)
        fused, _, cache.fusion_state = self.model.fusion(
            text_states, *cache.projected_regions, attention_mask=mask, state=cache.fusion_state
        )
        cache.seen_tokens += token_ids.shape[1]
        hidden_states, cache.decoder_state = self.decoder(fused, embeddings, mask, cache.decoder_state, True)
        if cache.word_bias is not None:
            cache.word_bias.scatter_(1, token_ids, 0.0)
        return self._score_words(hidden_states[:, -1], cache.word_bias)

    def _score_words(self, hidden_states: torch.Tensor, word_bias: torch.Tensor | None) -> torch.Tensor:
        """Logits `(..., V)` of decoder states `(..., D)` and a bias that fits them."""
        logits = self.lm_head(hidden_states)
        return logits if word_bias is None else logits + word_bias.to(logits.dtype)

    def _loss_terms(
        self, outputs, hidden_states, logits, input_ids, labels, attention_mask, word_bias
    ) -> dict[str, torch.Tensor]:
        if labels.shape != (logits if logits is not None else hidden_states).shape[:2]:
            raise ValueError(
                f"`labels` {tuple(labels.shape)} must have the shape of `input_ids` "
                f"{tuple(outputs.fused_hidden_states.shape[:2])}, without `cache` and with `logits_to_keep` at 0."
            )
        self.model.check_token_ids(labels.masked_fill(labels == -100, 0))
        terms: dict[str, torch.Tensor] = {}
        targets = labels[:, 1:]
        labelled = targets != -100
        if self.config.caption_loss_weight:
            scores, words = (hidden_states if logits is None else logits)[:, :-1][labelled], targets[labelled]
            if logits is None:
                # few sizes: oneDNN keeps what it has prepared for each, gigabytes in the end
                padding = -len(words) % LABEL_BLOCK
                bias = None
                if word_bias is not None:
                    bias = unsaid(word_bias, input_ids, *labelled.nonzero(as_tuple=True))
                    bias = nn.functional.pad(bias, (0, 0, 0, padding))
                scores = self._score_words(nn.functional.pad(scores, (0, 0, 0, padding)), bias)  # (N, V)
                words = nn.functional.pad(words, (0, padding), value=-100)
            terms["caption"] = caption_loss(scores, words, self.config.label_smoothing)
        if outputs.image_embeds is not None:
            terms |= self.alignment(outputs, attention_mask, self.model.fuse)
        return terms


def auto_classes() -> dict[str, type[FusionCaptionerPreTrainedModel]]:
    """
    The head behind each `Auto*` class of transformers.

    The other heads import this file, so they are imported in here. transformers finds the code that belongs to a model
    by lines of this form: whichever head is saved, all of them are saved with it.
    """
    from .image_text_retrieval import FusionCaptionerForImageTextRetrieval
    from .multiple_choice import FusionCaptionerForMultipleChoice
    from .sequence_classification import FusionCaptionerForSequenceClassification

    return {
        "AutoModel": FusionCaptionerModel,
        "AutoModelForImageTextToText": FusionCaptionerForConditionalGeneration,
        "AutoModelForMultimodalLM": FusionCaptionerForConditionalGeneration,
        "AutoModelForZeroShotImageClassification": FusionCaptionerForImageTextRetrieval,
        "AutoModelForSequenceClassification": FusionCaptionerForSequenceClassification,
        "AutoModelForImageClassification": FusionCaptionerForSequenceClassification,
        "AutoModelForMultipleChoice": FusionCaptionerForMultipleChoice,
    }


__all__ = [
    "FusionCaptionerForConditionalGeneration",
    "FusionCaptionerModel",
    "FusionCaptionerPreTrainedModel",
    "auto_classes",
]

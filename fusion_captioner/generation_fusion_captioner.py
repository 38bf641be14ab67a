"""What transformers' `GenerationMixin` needs to know of the captioner: each image, and its sound, is encoded once a
call, and the cache is a `CaptionCache`."""

# mypy: disable-error-code="attr-defined, misc, override"
# GenerationMixin types `self` as the finished model, which a mixin is not yet.

from contextlib import AbstractContextManager
from copy import copy
from functools import wraps
from inspect import unwrap
from typing import Any

import torch
from transformers import (
    Cache,
    GenerationMixin,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
)
from transformers.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.utils import ALL_CACHE_NAMES

from .causal_layers import PackedWeights, State, packed_weights
from .fusion import count_texts

# How transformers names the cache in calls and outputs: `cache` from 5.24 on, `past_key_values` before.
CACHE: str = ALL_CACHE_NAMES[0]


class CaptionCache(Cache):
    """
    States of text encoder, fusion and decoder after the tokens so far, and the projected regions of the images.

    States have one row per text (beam or sample) and follow the beams. Projected regions have one row per image: all
    beams and samples of an image share them, so they are neither expanded nor reordered.

    Args:
        projected_regions (tuple of `torch.FloatTensor`, each with one row per image): see `fusion.py`.
        concept_logits (`torch.FloatTensor` of shape `(B, K)`, *optional*): of which the first call makes `word_bias`,
            where concepts add to the scores of words that a text does not have yet.
    """

    is_compileable = False  # recurrent layers break the graph, and Transformer states grow

    def __init__(self, projected_regions: State, concept_logits: torch.Tensor | None = None) -> None:
        super().__init__(layers=[])
        self.projected_regions = projected_regions
        self.concept_logits = concept_logits
        self.word_bias: torch.Tensor | None = None
        self.text_state: State | None = None
        self.fusion_state: State | None = None
        self.decoder_state: State | None = None
        self.seen_tokens = 0

    @property
    def is_initialized(self) -> bool:
        """Whether a token has been seen."""
        return self.seen_tokens > 0

    @property
    def is_linear(self) -> list[bool]:
        """Not what transformers calls linear: a call that goes on is given the whole text, and reads what is new."""
        return [False]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, padding included."""
        return self.seen_tokens

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row `i` becomes what row `beam_idx[i]` was; beam search moves rows within their image only."""
        for name in ("text_state", "fusion_state", "decoder_state"):
            if (state := getattr(self, name)) is not None:
                setattr(self, name, tuple(tensor.index_select(0, beam_idx.to(tensor.device)) for tensor in state))
        if self.word_bias is not None:
            self.word_bias = self.word_bias.index_select(0, beam_idx.to(self.word_bias.device))

    def batch_select_indices(self, indices: torch.LongTensor) -> None:
        """Only the texts `indices` remain, in this order, each with a copy of its image's regions for itself."""
        assert self.decoder_state is not None  # a token has been seen
        images = indices // count_texts(len(self.decoder_state[0]), len(self.projected_regions[0]))
        regions = (tensor.index_select(0, images.to(tensor.device)) for tensor in self.projected_regions)
        self.projected_regions = tuple(regions)
        self.reorder_cache(indices)


class HiddenImageGuidance(LogitsProcessor):
    """
    Classifier-free guidance (Sanchez et al., 2023, eq. 7) away from the prediction with the image hidden.

    The text is read again for each word, because a separate cache would not follow the beams.

    Args:
        guidance_scale (`float`): 1 changes nothing, more moves further away.
        model (`FusionCaptionerForConditionalGeneration`).
        prompt_length (`int`): tokens before the first new one.
        attention_mask (`torch.LongTensor` of shape `(T, prompt_length)`, *optional*): of the prompts.
        negative_ids, negative_mask (`torch.LongTensor`, *optional*): prompts to read in place of those of the call.
    """

    def __init__(self, guidance_scale, model, prompt_length, attention_mask, negative_ids, negative_mask) -> None:
        self.guidance_scale = guidance_scale
        self.model = model
        self.prompt_length = prompt_length
        self.negative_ids = negative_ids
        self.prompt_mask = attention_mask if negative_ids is None else negative_mask

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Guided logarithms of the probabilities `(T, V)`."""
        prompt, words = input_ids[:, : self.prompt_length], input_ids[:, self.prompt_length :]
        if self.negative_ids is not None:
            prompt = self._expanded(self.negative_ids, input_ids)
        mask = None
        if self.prompt_mask is not None:
            mask = torch.cat((self._expanded(self.prompt_mask, input_ids), torch.ones_like(words)), dim=1)
        unguided = self.model(
            input_ids=torch.cat((prompt, words), dim=1),
            attention_mask=mask,
            image_hidden_states=self.model.hidden_image(1),
            use_cache=False,
            logits_to_keep=1,
            return_dict=True,
        ).logits[:, -1]
        unguided = unguided.to(scores).log_softmax(dim=-1)
        return unguided + self.guidance_scale * (scores.log_softmax(dim=-1) - unguided)

    @staticmethod
    def _expanded(tensor: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        return tensor.to(input_ids.device).repeat_interleave(len(input_ids) // len(tensor), dim=0)


class NoRepeatedNGrams(NoRepeatNGramLogitsProcessor):
    """Gives the scores that transformers' processor gives, for all texts at once. transformers makes a dictionary of
    each text in Python, anew at every step."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(T, V)` of the words behind texts `(T, L)`; those of words that would repeat an n-gram are -inf."""
        size, length = self.ngram_size, input_ids.shape[1]
        if length < size:
            return scores
        ngrams = input_ids.unfold(1, size, 1)  # (T, n-grams, size)
        is_begun = (ngrams[:, :, :-1] == input_ids[:, None, length + 1 - size :]).all(dim=2)
        texts, places = is_begun.nonzero(as_tuple=True)
        if len(texts) == 0:
            return scores
        return scores.index_put((texts, ngrams[texts, places, -1]), scores.new_tensor(-torch.inf))


class MinLength(MinLengthLogitsProcessor):
    """Gives the scores that transformers' processor gives. transformers looks for EOS in the whole vocabulary, anew at
    every step."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(T, V)` of the words behind texts `(T, L)`; that of EOS is -inf while these are too short."""
        return _without_end(scores, self.eos_token_id) if input_ids.shape[1] < self.min_length else scores


class MinNewTokens(MinNewTokensLengthLogitsProcessor):
    """The same for `min_new_tokens`."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(T, V)` of the words behind texts `(T, L)`; that of EOS is -inf while new tokens are too few."""
        is_short = input_ids.shape[1] - self.prompt_length_to_skip < self.min_new_tokens
        return _without_end(scores, self.eos_token_id) if is_short else scores


def _without_end(scores: torch.Tensor, end_ids: torch.Tensor) -> torch.Tensor:
    known = end_ids[(end_ids >= 0) & (end_ids < scores.shape[1])]
    return scores.index_fill(1, known, -torch.inf)


# transformers' processors, and those that give the same scores faster, with the same fields.
FASTER_PROCESSORS: dict[type[LogitsProcessor], type[LogitsProcessor]] = {
    MinLengthLogitsProcessor: MinLength,
    MinNewTokensLengthLogitsProcessor: MinNewTokens,
    NoRepeatNGramLogitsProcessor: NoRepeatedNGrams,
}


class FusionCaptionerGenerationMixin(GenerationMixin):
    """
    Generation from an image, and a prompt where one is given.

    Pixels become regions before anything else happens. Regions are left out of the expansion to beams and samples:
    rows of text, `k` times as many as images, find their image by their order.

    Attributes:
        kept_weights (`dict`, *optional*): packed weights that outlive a call of `generate`. Set it to an empty dict
            where no weight will change any more.
    """

    kept_weights: PackedWeights | None = None

    # the function inside transformers' `no_grad`, which `generate.__wrapped__` is for those who want gradients
    @wraps(unwrap(GenerationMixin.generate))
    def generate(self, *args, labels=None, language=None, **kwargs):
        """
        Args:
            labels (`torch.LongTensor` of shape `(T, L)`, *optional*): see `_prompts`.
            language (`str`, *optional*): for a captioner of several languages: the language of captions without a
                prompt; by default the first of `config.languages`. (A prompt already has its language, see
                [`FusionCaptionerProcessor`].)
            args, kwargs: as for `GenerationMixin.generate`.
        """
        known = dict(zip(self.config.languages or [], self.config.language_token_ids or []))
        has_prompt = args or kwargs.get("input_ids") is not None or kwargs.get("inputs") is not None
        if language is not None and (has_prompt or not isinstance(language, str) or language not in known):
            names = ", ".join(map(repr, known)) or "none, since this captioner has one language"
            why = "is given with a prompt, which brings its own" if has_prompt else f"must be one of {names}"
            raise ValueError(f"`language` ({language!r}) {why}.")
        has_cache = any(kwargs.get(name) is not None for name in (CACHE, "past_key_values"))
        if known and not has_prompt and not has_cache:
            kwargs["input_ids"] = self._beginnings(kwargs, known[language or next(iter(known))])
        if labels is not None:
            kwargs |= self._prompts(kwargs["input_ids"], kwargs.get("attention_mask"), labels)
        with self.packed_weights():
            return super().generate(*args, **kwargs)

    def packed_weights(self) -> AbstractContextManager[None]:
        """Inside, what each step multiplies by is packed; see [`~fusion_captioner.causal_layers.packed_weights`]."""
        base = self.model
        modules = [base.region_projection, base.text_encoder, base.fusion, self.decoder, self.lm_head]
        if base.concept_head is not None:
            modules.append(base.concept_head)
        return packed_weights(modules, self.kept_weights)

    def _beginnings(self, inputs, language_token_id):
        """BOS and the token of the language for each image, `(B, 2)`."""
        images = [inputs[name] for name in ("pixel_values", "image_hidden_states") if inputs.get(name) is not None]
        rows = len(images[0]) if images else 1
        return torch.tensor([[self.config.bos_token_id, language_token_id]] * rows, device=self.device)

    def _prompts(self, input_ids, attention_mask, labels):
        """
        The prompts alone, padded on the left, of rows that hold references: `Seq2SeqTrainer` generates from batches of
        training, and without this would go on behind the reference.

        Args:
            input_ids (`torch.LongTensor` of shape `(T, L)`): prompts and references.
            attention_mask (`torch.LongTensor` of shape `(T, L)`, *optional*): without it, what is not PAD.
            labels (`torch.LongTensor` of shape `(T, L)`): the references, -100 on everything else.
        """
        is_prompt = labels.eq(-100).long().cummin(dim=1).values.bool()  # up to the first token of the reference
        pad_id = self.config.pad_token_id
        is_prompt &= input_ids.ne(pad_id) if attention_mask is None else attention_mask.bool()
        width = int(is_prompt.sum(dim=1).max())
        order = is_prompt.long().argsort(dim=1, stable=True)[:, -width:]  # the prompt's tokens last, in their order
        mask = is_prompt.gather(1, order)
        ids = input_ids.gather(1, order).masked_fill(~mask, pad_id)
        return {"input_ids": ids, "attention_mask": mask.long()}

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        pixel_values = model_kwargs.pop("pixel_values", None)
        regions = model_kwargs.pop("image_hidden_states", None)
        if (pixel_values is None) == (regions is None) and model_kwargs.get(CACHE) is None:
            raise ValueError(
                "`generate` takes either `pixel_values` or `image_hidden_states`, and got "
                f"{'neither' if regions is None else 'both'}."
            )
        device = self.device
        if regions is None and pixel_values is not None:
            regions = self.get_image_hidden_states(pixel_values.to(device))
        elif regions is not None:
            regions = self.model.check_regions(regions)
        if regions is not None:
            if len(regions) == 0:
                raise ValueError("`generate` got an empty batch of images; give at least one.")
            # first of the keyword arguments: the number of BOS tokens is read off it
            model_kwargs = {"image_hidden_states": regions.to(device), **model_kwargs}
            if (sounds := model_kwargs.pop("input_features", None)) is not None:
                model_kwargs["audio_hidden_states"] = self.model.get_audio_hidden_states(sounds.to(device))
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _expand_inputs_for_generation(self, *args, image_hidden_states=None, audio_hidden_states=None, **model_kwargs):
        if image_hidden_states is not None:
            # beams could fill up what is missing, and give texts to the wrong images
            count_texts(len(model_kwargs["input_ids"]), len(image_hidden_states))
        input_ids, model_kwargs = super()._expand_inputs_for_generation(*args, **model_kwargs)
        return input_ids, model_kwargs | {
            "image_hidden_states": image_hidden_states,
            "audio_hidden_states": audio_hidden_states,
        }

    def _get_logits_processor(
        self,
        generation_config,
        input_ids_seq_length=None,
        *args,
        model_kwargs=None,
        negative_prompt_ids=None,
        negative_prompt_attention_mask=None,
        **kwargs,
    ):
        processors = super()._get_logits_processor(
            generation_config, input_ids_seq_length, *args, model_kwargs=model_kwargs, **kwargs
        )
        for index, processor in enumerate(processors):
            if faster := FASTER_PROCESSORS.get(type(processor)):
                processors[index] = copy(processor)  # it may be the caller's
                processors[index].__class__ = faster
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                processors[index] = HiddenImageGuidance(
                    generation_config.guidance_scale,
                    self,
                    input_ids_seq_length,
                    (model_kwargs or {}).get("attention_mask"),
                    negative_prompt_ids,
                    negative_prompt_attention_mask,
                )
        return processors

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        regions, sounds = model_kwargs.get("image_hidden_states"), model_kwargs.get("audio_hidden_states")
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"`cache_implementation` ({generation_config.cache_implementation!r}) is not supported: recurrent "
                "states have a fixed size and one kind of cache; leave it out."
            )
        if model_kwargs.get(CACHE) is None and generation_config.use_cache:
            concept_logits = self.model.score_concepts(regions) if self.model.uses_concepts else None
            projected = self.model.project_regions(regions, sounds, concept_logits)
            model_kwargs[CACHE] = CaptionCache(projected, concept_logits)
        if model_kwargs.get(CACHE) is not None:
            model_kwargs.pop("image_hidden_states")
            model_kwargs.pop("audio_hidden_states", None)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _sample(
        self,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=False,
        streamer=None,
        **model_kwargs,
    ):
        """
        transformers' greedy search and sampling, token for token. On a CPU, where only the tokens are wanted, a step
        calls the layers and nothing else: what transformers does around them takes longer than their products.
        """
        cache = model_kwargs.get(CACHE)
        if (
            not isinstance(cache, CaptionCache)
            or input_ids.device.type != "cpu"
            or synced_gpus
            or generation_config.return_dict_in_generate
            or generation_config.is_assistant
            or not self._is_called_as_defined()
        ):
            return super()._sample(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus,
                streamer,
                **model_kwargs,
            )
        ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        pad_id = generation_config._pad_token_tensor
        running = torch.ones(len(input_ids), dtype=torch.long)
        mask = model_kwargs.get("attention_mask")
        if mask is not None and mask.all():
            mask = None
        if cache.is_initialized or generation_config.prefill_chunk_size is not None:
            logits = self._prefill(input_ids, generation_config, model_kwargs).logits[:, -1]
        else:
            logits = self.next_logits(input_ids, mask, cache)
        while True:
            scores = logits.to(copy=True, dtype=torch.float32)
            for processor in logits_processor:
                scores = processor(input_ids, scores)
            if generation_config.do_sample:
                tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
            else:
                tokens = scores.argmax(dim=-1)
            if ends:
                tokens = tokens * running + pad_id * (1 - running)
            tokens = tokens[:, None]
            input_ids = torch.cat((input_ids, tokens), dim=1)
            running = running & ~stopping_criteria(input_ids, None)
            if streamer is not None:
                streamer.put(tokens[:, 0])
            if not running.any():
                break
            if mask is not None:
                mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
            logits = self.next_logits(tokens, mask, cache)
        if streamer is not None:
            streamer.end()
        return input_ids

    def step(self, token_ids: torch.Tensor, mask: torch.Tensor | None, cache: CaptionCache) -> torch.Tensor:
        """
        Logits `(T, V)` behind one more token `(T, 1)` of each text: by the layers alone, if a call of the model does
        nothing else.

        Args:
            mask (`torch.LongTensor` of shape `(T, L)`, *optional*): 1 at tokens, 0 at padding, this token included.
        """
        if self._is_called_as_defined():
            return self.next_logits(token_ids, mask, cache)
        inputs = {"input_ids": token_ids, "attention_mask": mask, CACHE: cache}
        model: Any = self  # GenerationMixin is no module yet
        return model(**inputs, use_cache=True, return_dict=True).logits[:, -1]

    def _is_called_as_defined(self) -> bool:
        """Whether [`next_logits`] does what a call of the model does: subclasses and offloading bring a `forward` of
        their own, tools and users hang hooks on the models."""
        defines = next(each for each in type(self).__mro__ if "forward" in vars(each))
        models: list[Any] = [self, self.model]
        return "next_logits" in vars(defines) and not any(
            "forward" in vars(model) or model._forward_hooks or model._forward_pre_hooks for model in models
        )

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, **kwargs):
        """As in transformers; the images travel in the cache, or, without one, as regions at every step."""
        names = ("image_hidden_states", "audio_hidden_states")
        regions = {name: kwargs.pop(name) for name in names if name in kwargs}
        return super().prepare_inputs_for_generation(input_ids, next_sequence_length, **kwargs) | regions

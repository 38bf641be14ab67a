"""What transformers' `GenerationMixin` needs to know of the captioner: each image, and its sound, is encoded once a call,
and the cache is a `CaptionCache`."""

# mypy: disable-error-code="attr-defined, misc, override"
# GenerationMixin types `self` as the finished model, which a mixin is not yet.

from functools import wraps

from transformers import GenerationMixin

from .caption_cache import CaptionCache
from .fusion import count_texts
from .packed_linear import packed_weights


class FusionCaptionerGenerationMixin(GenerationMixin):
    """
    Generation from an image, and a prompt where one is given.

    Pixels become regions before anything else happens. Regions are left out of the expansion to beams and samples:
    rows of text, `k` times as many as images, find their image by their order.
    """

    # the function inside transformers' `no_grad`, which `generate.__wrapped__` is for those who want gradients
    @wraps(GenerationMixin.generate.__wrapped__)
    def generate(self, *args, **kwargs):
        # what each step multiplies by
        with packed_weights((self.model.text_encoder, self.model.fusion, self.decoder, self.lm_head)):
            return super().generate(*args, **kwargs)

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        pixel_values = model_kwargs.pop("pixel_values", None)
        regions = model_kwargs.pop("image_hidden_states", None)
        if (pixel_values is None) == (regions is None) and model_kwargs.get("past_key_values") is None:
            raise ValueError(
                "`generate` takes either `pixel_values` or `image_hidden_states`, and got "
                f"{'neither' if regions is None else 'both'}."
            )
        if regions is None and pixel_values is not None:
            regions = self.get_image_hidden_states(pixel_values.to(self.device))
        elif regions is not None:
            regions = self.model.check_regions(regions)
        if regions is not None:
            if len(regions) == 0:
                raise ValueError("`generate` got an empty batch of images; give at least one.")
            # first of the keyword arguments: the number of BOS tokens is read off it
            model_kwargs = {"image_hidden_states": regions.to(self.device), **model_kwargs}
            if (sounds := model_kwargs.pop("input_features", None)) is not None:
                model_kwargs["audio_hidden_states"] = self.model.get_audio_hidden_states(sounds.to(self.device))
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

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        regions, sounds = model_kwargs.get("image_hidden_states"), model_kwargs.get("audio_hidden_states")
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"`cache_implementation` ({generation_config.cache_implementation!r}) is not supported: recurrent "
                "states have a fixed size and one kind of cache; leave it out."
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache:
            model_kwargs["past_key_values"] = CaptionCache(self.model.project_regions(regions, sounds))
        if model_kwargs.get("past_key_values") is not None:
            model_kwargs.pop("image_hidden_states")
            model_kwargs.pop("audio_hidden_states", None)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, **kwargs):
        """As in transformers; the images travel in the cache, or, without one, as regions at every step."""
        names = ("image_hidden_states", "audio_hidden_states")
        regions = {name: kwargs.pop(name) for name in names if name in kwargs}
        return super().prepare_inputs_for_generation(input_ids, next_sequence_length, **kwargs) | regions

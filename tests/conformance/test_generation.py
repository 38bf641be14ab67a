"""Generation, by the names that `GenerationTesterMixin` of transformers gives its tests; the sources lack that class.

It asks for what language models do. Where a captioner refuses that, the test holds that it does, and says how.
"""

import itertools

import pytest
import torch
from tiny_models import FUSION_TYPES, VOCAB_SIZE, pixels, tiny_model
from transformers import DynamicCache, GenerationMixin, LogitsProcessor, LogitsProcessorList, StaticCache
from transformers.generation import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.generation_fusion_captioner import CaptionCache

NEW, WORDS = 5, 2  # new tokens, and those of the prompts, BOS among them
PROMPTS = torch.tensor([[1, 11], [1, 12]])
BEAMS = {"num_beams": 3, "num_return_sequences": 2}
SAMPLES = {"do_sample": True, "num_return_sequences": 2, "top_k": 20, "temperature": 1.5}
DETAILS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
# the three variants of `test_models.py`, by what generation depends on
VARIANTS = [("attention", "lstm"), ("co_attention", "transformer"), ("sum", "gru")]
all_variants = pytest.mark.parametrize(("fusion_type", "layer_type"), VARIANTS, ids=lambda value: value)


def model_of(fusion_type: str = "attention", layer_type: str = "lstm") -> FusionCaptionerForConditionalGeneration:
    return tiny_model(fusion_type=fusion_type, text_encoder_type=layer_type, decoder_type=layer_type)


def generate(model, **options):
    """`NEW` tokens for two images, behind a prompt each; the same at every call."""
    torch.manual_seed(0)
    settings = {"pixel_values": pixels(), "input_ids": PROMPTS, "min_new_tokens": NEW, "max_new_tokens": NEW}
    return model.generate(**(settings | options))


def step_by_step(model, **options) -> torch.Tensor:
    """What greedy search gives, from whole texts read by `forward`."""
    text = PROMPTS
    for _ in range(NEW):
        scores = model(input_ids=text, pixel_values=pixels(), use_cache=False).logits[:, -1]
        scores[:, model.config.eos_token_id] = -torch.inf
        text = torch.cat((text, scores.argmax(dim=-1, keepdim=True)), dim=1)
    return text


def test_inherits_generation_mixin() -> None:
    assert issubclass(FusionCaptionerForConditionalGeneration, GenerationMixin)
    assert FusionCaptionerForConditionalGeneration.can_generate()


@all_variants
def test_greedy_generate(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    assert torch.equal(generate(model), step_by_step(model))


@all_variants
@pytest.mark.parametrize("use_cache", [False, True])
def test_greedy_generate_dict_outputs(fusion_type: str, layer_type: str, use_cache: bool) -> None:
    model = model_of(fusion_type, layer_type)
    found = generate(model, use_cache=use_cache, output_hidden_states=True, **DETAILS)
    assert isinstance(found, GenerateDecoderOnlyOutput)
    assert torch.equal(found.sequences, generate(model))
    assert [step.shape for step in found.logits] == [(2, VOCAB_SIZE)] * NEW
    assert len(found.scores) == len(found.hidden_states) == NEW
    lengths = [1 if use_cache and step else WORDS + step for step in range(NEW)]
    assert [states[-1].shape[1] for states in found.hidden_states] == lengths
    assert isinstance(found.past_key_values, CaptionCache) is use_cache


@all_variants
def test_sample_generate(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    found = generate(model, **SAMPLES)
    assert found.shape == (4, WORDS + NEW)
    assert torch.equal(found, generate(model, **SAMPLES))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[:, :WORDS], PROMPTS.repeat_interleave(2, dim=0))


@all_variants
def test_sample_generate_dict_output(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    found = generate(model, **SAMPLES, **DETAILS)
    assert isinstance(found, GenerateDecoderOnlyOutput)
    for step, (scores, logits) in enumerate(zip(found.scores, found.logits)):
        kept = scores.isfinite()
        assert (kept.sum(dim=1) <= 20).all()
        torch.testing.assert_close(scores[kept], logits[kept] / 1.5)
        assert kept.gather(1, found.sequences[:, WORDS + step, None]).all()


@all_variants
def test_beam_search_generate(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    found = generate(model, **BEAMS)
    assert found.shape == (4, WORDS + NEW)
    assert torch.equal(generate(model, num_beams=1), generate(model))
    # each image's beams are searched alone
    alone = generate(model, pixel_values=pixels()[1:], input_ids=PROMPTS[1:], **BEAMS)
    assert torch.equal(found[2:], alone)


@all_variants
def test_beam_search_generate_dict_output(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    found = generate(model, length_penalty=0.0, **BEAMS, **DETAILS)
    assert isinstance(found, GenerateBeamDecoderOnlyOutput)
    images = pixels().repeat_interleave(2, dim=0)
    scores = model(input_ids=found.sequences, pixel_values=images, use_cache=False).logits[:, WORDS - 1 : -1]
    words = scores.log_softmax(dim=-1).gather(2, found.sequences[:, WORDS:, None])[..., 0]
    torch.testing.assert_close(found.sequences_scores, words.sum(dim=1))


@all_variants
@pytest.mark.parametrize("options", [{}, SAMPLES, BEAMS, BEAMS | {"do_sample": True}])
def test_generate_dict_outputs_use_cache(fusion_type: str, layer_type: str, options: dict) -> None:
    model = model_of(fusion_type, layer_type)
    with_cache, without = (generate(model, use_cache=use, **options, **DETAILS) for use in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)
    torch.testing.assert_close(torch.stack(with_cache.logits), torch.stack(without.logits))


@all_variants
def test_beam_sample_generate(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    found = generate(model, do_sample=True, **BEAMS)
    assert found.shape == (4, WORDS + NEW)
    assert torch.equal(found, generate(model, do_sample=True, **BEAMS))


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_left_padding_compatibility(fusion_type: str) -> None:
    for layer_type in ("lstm", "gru", "transformer"):
        model = model_of(fusion_type, layer_type)
        padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), PROMPTS), dim=1)
        found = generate(model, input_ids=padded, attention_mask=(padded != 0).long())
        assert torch.equal(found[:, 3:], generate(model))


@all_variants
def test_past_key_values_format(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    for rows, options in ((2, {}), (6, BEAMS)):
        cache = generate(model, **options, **DETAILS).past_key_values
        assert isinstance(cache, CaptionCache)
        assert cache.get_seq_length() == WORDS + NEW - 1
        states = [*cache.text_state, *(cache.fusion_state or ()), *cache.decoder_state]
        assert {len(state) for state in states} == {rows}
        assert {len(regions) for regions in cache.projected_regions} == {2}


@all_variants
def test_generate_continue_from_past_key_values(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    begun = generate(model, min_new_tokens=2, max_new_tokens=2, **DETAILS)
    rest = {"min_new_tokens": NEW - 2, "max_new_tokens": NEW - 2}
    cache = begun.past_key_values
    ended = generate(model, input_ids=begun.sequences, pixel_values=None, past_key_values=cache, **rest)
    assert torch.equal(ended, generate(model))


def test_generate_without_input_ids() -> None:
    model = model_of()
    found = generate(model, input_ids=None)
    assert torch.equal(found, generate(model, input_ids=torch.ones(2, 1, dtype=torch.long)))
    positional = model.generate(PROMPTS, pixel_values=pixels(), min_new_tokens=NEW, max_new_tokens=NEW)
    assert torch.equal(positional, generate(model))


@pytest.mark.parametrize("inputs", [{"input_ids": PROMPTS}, {}], ids=["words alone", "nothing"])
def test_generate_from_input_ids_alone(inputs: dict) -> None:
    with pytest.raises(ValueError, match="`pixel_values` or `image_hidden_states`, and got neither"):
        model_of().generate(**inputs, max_new_tokens=NEW)


def test_generate_from_inputs_embeds() -> None:
    with pytest.raises(ValueError, match=r"not used by the model: .*inputs_embeds"):
        generate(model_of(), input_ids=None, inputs_embeds=torch.zeros(2, 3, 16))


@pytest.mark.parametrize("kind", ["static", "offloaded_static", "quantized", "dynamic", "offloaded"])
def test_generate_with_static_cache(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"`cache_implementation` \('{kind}'\) is not supported"):
        generate(model_of(), cache_implementation=kind)


@pytest.mark.parametrize("layer_type", ["lstm", "transformer"])
def test_generate_with_the_cache_of_another_model(layer_type: str) -> None:
    model = model_of("attention", layer_type)
    for cache in (DynamicCache(), StaticCache(config=model.config, max_cache_len=8)):
        with pytest.raises(ValueError, match=rf"`cache` \({type(cache).__name__}\) must be a CaptionCache"):
            generate(model, past_key_values=cache)


@pytest.mark.parametrize("options", [{"assistant_model": True}, {"prompt_lookup_num_tokens": 2}])
def test_assisted_decoding_matches_greedy_search(options: dict) -> None:
    model = model_of()
    # words that were guessed cannot be taken back from a recurrent state
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        generate(model, **{name: model if value is True else value for name, value in options.items()})


class Forbidden(LogitsProcessor):
    def __init__(self, word: int) -> None:
        self.word = word

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([self.word]), -torch.inf)


@all_variants
def test_logits_processors(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    usual = generate(model)
    word = int(usual[0, WORDS])
    for options in (
        {"logits_processor": LogitsProcessorList([Forbidden(word)])},
        {"bad_words_ids": [[word]]},
        {"suppress_tokens": [word]},
    ):
        found = generate(model, **options)
        assert word not in found[:, WORDS:]
    repeated = generate(model, no_repeat_ngram_size=1, num_beams=2)
    assert all(len(set(row)) == len(row) for row in repeated.tolist())
    assert (generate(model, forced_eos_token_id=7)[:, -1] == 7).all()
    ended = generate(model, min_new_tokens=3, max_new_tokens=3)
    stopped = generate(model, stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(WORDS + 3)]))
    assert torch.equal(stopped, ended)


def test_prefix_allowed_tokens() -> None:
    allowed = {0: [5, 6], 1: [7, 8]}
    found = generate(model_of(), prefix_allowed_tokens_fn=lambda row, _: allowed[row], min_new_tokens=0)
    assert all(set(found[row, WORDS:].tolist()) <= set(allowed[row]) for row in allowed)


@all_variants
def test_generate_methods_with_logits_to_keep(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    whole = model(input_ids=PROMPTS, pixel_values=pixels()).logits
    torch.testing.assert_close(model(input_ids=PROMPTS, pixel_values=pixels(), logits_to_keep=1).logits, whole[:, -1:])
    for options in ({}, BEAMS):
        assert torch.equal(generate(model, logits_to_keep=0, **options), generate(model, **options))


@all_variants
def test_attention_outputs_of_generation(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    found = generate(model, output_attentions=True, **DETAILS).attentions
    if fusion_type == "sum":
        assert found is None or set(itertools.chain.from_iterable(step or () for step in found)) == set()
        return
    assert [step[0].shape for step in found] == [(2, 2, length, 16) for length in (WORDS, *[1] * (NEW - 1))]
    for step in found:
        torch.testing.assert_close(step[0].sum(dim=-1), torch.ones(step[0].shape[:3]))

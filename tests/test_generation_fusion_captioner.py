"""Generation: the cache changes nothing but the time, every image is encoded once, rows do not disturb each other."""

import itertools
from functools import wraps

import pytest
import torch
from tiny_models import FUSION_TYPES, VOCAB_SIZE, pixels, tiny_model, tiny_tokenizer, tokens
from transformers import (
    DynamicCache,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from fusion_captioner.generation_fusion_captioner import MinLength, MinNewTokens, NoRepeatedNGrams

BOS, EOS, PAD = 1, 2, 0
MODELS = [*itertools.product(FUSION_TYPES, ["lstm", "transformer"]), ("co_attention", "gru")]
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "samples": {"do_sample": True, "num_return_sequences": 2},
}


# words that are likely at once, among them two of the prompts
CONCEPTS = {"num_concepts": 3, "concept_token_ids": [5, 7, 11, 12, 13, 14], "concept_bias": 500.0}


def fields_of(model: tuple[str, str]) -> dict[str, str]:
    fusion_type, layer_type = model
    return {"fusion_type": fusion_type, "text_encoder_type": layer_type, "decoder_type": layer_type}


def model_of(fusion_type: str, layer_type: str):
    return tiny_model(**fields_of((fusion_type, layer_type)))


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """A prompt of three words and one of one word, behind BOS, padded on the left."""
    ids = torch.tensor([[BOS, 11, 12, 13], [PAD, PAD, BOS, 14]])
    return ids, torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


def generate(model, seed: int = 0, **options):
    torch.manual_seed(seed)
    defaults = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(**(defaults | options))


@pytest.mark.parametrize("padded_left", [True, False])
def test_rows_with_labels_are_cut_to_their_prompts(padded_left: bool) -> None:
    """A user who evaluates with batches of training, as `Seq2SeqTrainer` does, must not go on behind the reference."""
    model, (ids, mask) = model_of("attention", "lstm"), prompts()
    words = [[BOS, 11, 12, 13, 7, 8, EOS], [BOS, 14, 9, EOS]]
    width = max(map(len, words))
    fill = (lambda row, value: [value] * (width - len(row)) + row) if padded_left else None
    fill = fill or (lambda row, value: row + [value] * (width - len(row)))
    batch = {
        "input_ids": torch.tensor([fill(row, PAD) for row in words]),
        "attention_mask": torch.tensor([fill([1] * len(row), 0) for row in words]),
        "labels": torch.tensor([fill([-100] * n + row[n:], -100) for n, row in zip((4, 2), words, strict=True)]),
    }
    expected = model.generate(pixel_values=pixels(), input_ids=ids, attention_mask=mask, max_new_tokens=5)
    assert torch.equal(model.generate(pixel_values=pixels(), max_new_tokens=5, **batch), expected)
    del batch["attention_mask"]  # then what is PAD is padding
    assert torch.equal(model.generate(pixel_values=pixels(), max_new_tokens=5, **batch), expected)
    if padded_left:
        batch["labels"].fill_(-100)  # no reference in any row: all of it is the prompt
        whole = model.generate(pixel_values=pixels(), input_ids=batch["input_ids"], max_new_tokens=2)
        assert torch.equal(model.generate(pixel_values=pixels(), max_new_tokens=2, **batch), whole)


@pytest.mark.parametrize(("fusion_type", "layer_type"), MODELS)
def test_with_and_without_the_cache_the_words_are_the_same(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    ids, mask = prompts()
    for prompt in ({}, {"input_ids": ids, "attention_mask": mask}):
        for mode, options in MODES.items():
            cached, uncached = (
                generate(model, pixel_values=pixels(), use_cache=use_cache, **options, **prompt)
                for use_cache in (True, False)
            )
            assert torch.equal(cached.sequences, uncached.sequences), mode
            torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits))


@pytest.mark.parametrize(
    "fields", [*map(fields_of, MODELS), CONCEPTS], ids=lambda fields: "-".join(map(str, fields.values()))
)
@pytest.mark.parametrize("mode", ["greedy", "samples"])
def test_tokens_alone_are_those_of_transformers_own_loop(fields: dict, mode: str) -> None:
    """A caller who asks for logits as well gets transformers' loop around the model, others the short one."""
    model = tiny_model(**fields)
    ids, mask = prompts()
    options = MODES[mode] | {"pixel_values": pixels(), "min_new_tokens": 2, "repetition_penalty": 1.3}
    for prompt in ({}, {"input_ids": ids, "attention_mask": mask}):
        expected = generate(model, **options, **prompt).sequences
        assert torch.equal(generate(model, **options, **prompt, return_dict_in_generate=False), expected)


@pytest.mark.parametrize("change", ["hook", "forward", "subclass"])
def test_a_forward_of_another_make_is_called_for_each_token(change: str) -> None:
    model, calls = tiny_model(), []
    if change == "hook":
        model.register_forward_hook(lambda *_: calls.append(1))
    else:
        plain = model.forward

        @wraps(plain)
        def forward(*args, **kwargs):
            calls.append(1)
            return plain(*args, **kwargs)

        if change == "forward":
            model.forward = forward
        else:
            model.__class__ = type("Other", (type(model),), {"forward": staticmethod(forward)})
    model.generate(pixel_values=pixels(), max_new_tokens=5, min_new_tokens=5)
    assert len(calls) == 5


@pytest.mark.parametrize(("fusion_type", "layer_type"), MODELS)
def test_a_batch_of_prompts_equals_each_alone(fusion_type: str, layer_type: str) -> None:
    model = model_of(fusion_type, layer_type)
    ids, mask = prompts()
    options = {"min_new_tokens": 6}
    batch = generate(model, pixel_values=pixels(), input_ids=ids, attention_mask=mask, **options)
    for row in range(2):
        alone = generate(
            model, pixel_values=pixels()[row : row + 1], input_ids=ids[row : row + 1, mask[row].bool()], **options
        )
        assert torch.equal(batch.sequences[row, 4:], alone.sequences[0, int(mask[row].sum()) :])
        torch.testing.assert_close(
            torch.stack(batch.logits)[:, row], torch.stack(alone.logits)[:, 0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("layer_type", ["lstm", "gru", "transformer"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_prompts_read_in_pieces_equal_prompts_read_at_once(layer_type: str, size: int) -> None:
    model = model_of("co_attention", layer_type)
    ids, mask = prompts()
    at_once, in_pieces = (
        generate(model, pixel_values=pixels(), input_ids=ids, attention_mask=mask, **options)
        for options in ({}, {"prefill_chunk_size": size})
    )
    assert torch.equal(in_pieces.sequences, at_once.sequences)
    torch.testing.assert_close(torch.stack(in_pieces.logits), torch.stack(at_once.logits))


def test_a_conversation_goes_on_from_the_cache() -> None:
    model, options = tiny_model(fusion_type="co_attention"), {"max_new_tokens": 4, "min_new_tokens": 4}
    first = generate(model, pixel_values=pixels(1), **options)
    ids = torch.cat((first.sequences, tokens(1, 3)), dim=1)
    again = generate(model, pixel_values=pixels(1), input_ids=ids, **options)
    calls: list[int] = []
    model.model.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    going_on = generate(model, past_key_values=first.past_key_values, input_ids=ids, **options)
    assert torch.equal(going_on.sequences, again.sequences)
    torch.testing.assert_close(torch.stack(going_on.logits), torch.stack(again.logits))
    assert calls == []


def test_greedy_takes_the_best_word_at_each_step() -> None:
    model = tiny_model()
    ids = torch.full((2, 1), BOS)
    for _ in range(6):
        logits = model(pixel_values=pixels(), input_ids=ids, use_cache=False).logits[:, -1]
        logits[:, EOS] = -torch.inf
        ids = torch.cat((ids, logits.argmax(dim=-1, keepdim=True)), dim=1)
    assert torch.equal(model.generate(pixel_values=pixels(), max_new_tokens=6, min_new_tokens=6), ids)


def test_wide_beams_find_the_best_of_all_texts() -> None:
    model = tiny_model(vocab_size=8)
    words = [word for word in range(8) if word != EOS]
    texts = torch.tensor([[BOS, first, second] for first in words for second in words])
    with torch.no_grad():
        logarithms = model(pixel_values=pixels(1), input_ids=texts).logits.log_softmax(dim=-1)
    scores = logarithms[:, :2].gather(2, texts[:, 1:, None]).sum(dim=(1, 2))
    output = generate(
        model, pixel_values=pixels(1), num_beams=8, num_return_sequences=3, max_new_tokens=2, min_new_tokens=2,
        output_scores=True,
    )  # fmt: skip
    best = scores.topk(3)
    assert torch.equal(output.sequences, texts[best.indices])
    torch.testing.assert_close(output.sequences_scores, best.values / 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_cache", [True, False])
def test_every_image_is_encoded_once_a_call(mode: str, use_cache: bool) -> None:
    model, seen = tiny_model(), []
    model.model.image_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    model.generate(pixel_values=pixels(), max_new_tokens=5, min_new_tokens=5, use_cache=use_cache, **MODES[mode])
    assert seen == [2]


def test_with_the_cache_regions_are_projected_once_and_for_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_model(), []
    project = model.model.fusion.project_regions
    monkeypatch.setattr(
        model.model.fusion, "project_regions", lambda regions: (seen.append(len(regions)), project(regions))[1]
    )
    output = generate(model, pixel_values=pixels(), num_beams=3, num_return_sequences=3)
    assert len(output.sequences) == 6
    assert seen == [2]
    assert {len(tensor) for tensor in output.past_key_values.projected_regions} == {2}


@pytest.mark.parametrize("mode", ["beams", "samples"])
def test_several_captions_of_an_image_stand_together(mode: str) -> None:
    model = tiny_model()
    output = generate(model, pixel_values=pixels(), output_scores=True, **MODES[mode])
    assert len(output.sequences) == 4
    if mode == "beams":
        assert (output.sequences_scores.view(2, 2).diff(dim=1) <= 0).all()
        for image in range(2):
            alone = generate(model, pixel_values=pixels()[image : image + 1], **MODES[mode]).sequences
            rows = output.sequences[2 * image : 2 * image + 2]
            assert torch.equal(rows[:, : alone.shape[1]], alone)
            assert (rows[:, alone.shape[1] :] == PAD).all()
    else:
        again = generate(model, pixel_values=pixels(), **MODES[mode]).sequences
        assert torch.equal(again, output.sequences)
        assert not torch.equal(
            generate(model, seed=1, pixel_values=pixels(), **MODES[mode]).sequences, output.sequences
        )


def test_text_begins_with_bos_or_the_prompt_and_ends_with_eos() -> None:
    model = tiny_model()
    ids, mask = prompts()
    assert (model.generate(pixel_values=pixels(), max_new_tokens=3)[:, 0] == BOS).all()
    prompted = model.generate(pixel_values=pixels(), input_ids=ids, attention_mask=mask, max_new_tokens=3)
    assert torch.equal(prompted[:, :4], ids)
    with torch.no_grad():
        model.lm_head.bias[EOS] = 1000.0
    assert model.generate(pixel_values=pixels(), max_new_tokens=9).tolist() == [[BOS, EOS]] * 2


def test_several_prompts_an_image_equal_the_image_repeated() -> None:
    model, ids = tiny_model(), tokens(4, 3)
    for options in ({}, {"num_beams": 2}):
        shared = model.generate(pixel_values=pixels(), input_ids=ids, max_new_tokens=5, **options)
        repeated = model.generate(
            pixel_values=pixels().repeat_interleave(2, dim=0), input_ids=ids, max_new_tokens=5, **options
        )
        assert torch.equal(shared, repeated)


@pytest.mark.parametrize("frames", [(), (2,)])
def test_regions_can_stand_for_pixels(frames: tuple[int, ...]) -> None:
    model, images = tiny_model(max_frames=2), pixels(2, *frames)
    regions = model.get_image_hidden_states(images)
    for options in ({}, {"num_beams": 3}):
        expected = generate(model, pixel_values=images, **options)
        output = generate(model, image_hidden_states=regions, **options)
        assert torch.equal(output.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits))


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[torch.Tensor] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        assert not self.ended
        self.pieces.append(value.flatten())

    def end(self) -> None:
        self.ended = True


def test_words_are_streamed_one_by_one() -> None:
    model, recorder, ids = tiny_model(), Recorder(), torch.tensor([[BOS, 11, 12]])
    options = {"pixel_values": pixels(1), "input_ids": ids, "max_new_tokens": 5, "min_new_tokens": 5}
    expected = model.generate(**options)
    assert torch.equal(model.generate(**options, streamer=recorder), expected)
    assert recorder.ended
    assert [len(piece) for piece in recorder.pieces] == [3, 1, 1, 1, 1, 1]
    assert torch.equal(torch.cat(recorder.pieces), expected[0])


def test_text_is_streamed_as_transformers_does() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=600)
    generated = model.generate(pixel_values=pixels(1), max_new_tokens=5, min_new_tokens=5, streamer=streamer)
    text = "".join(streamer)
    assert text == tokenizer.decode(generated[0, 1:], skip_special_tokens=True)
    assert text.count("w") == 5


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("prompted", [False, True])
def test_guidance_moves_away_from_what_the_text_alone_predicts(prompted: bool, num_beams: int) -> None:
    model = model_of("co_attention", "lstm")
    ids, mask = prompts() if prompted else (torch.full((2, 1), BOS), torch.ones(2, 1, dtype=torch.long))
    given = {"pixel_values": pixels(), "input_ids": ids, "attention_mask": mask, "min_new_tokens": 5}
    plain = generate(model, **given, num_beams=num_beams)
    same = generate(model, **given, num_beams=num_beams, guidance_scale=1.0)
    assert torch.equal(same.sequences, plain.sequences)
    guided = generate(model, **given, num_beams=num_beams, guidance_scale=3.0)
    assert not torch.equal(guided.sequences, plain.sequences)
    if num_beams == 1:
        for _ in range(5):
            shown, hidden = (
                model(input_ids=ids, attention_mask=mask, use_cache=False, **image).logits[:, -1].log_softmax(dim=-1)
                for image in ({"pixel_values": pixels()}, {"image_hidden_states": model.hidden_image(2)})
            )
            scores = hidden + 3.0 * (shown - hidden)
            scores[:, EOS] = -torch.inf
            ids = torch.cat((ids, scores.argmax(dim=-1, keepdim=True)), dim=1)
            mask = torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), dim=1)
        assert torch.equal(guided.sequences[:, : ids.shape[1]], ids)


def test_guidance_takes_prompts_of_its_own() -> None:
    model = model_of("attention", "lstm")
    given = {"pixel_values": pixels(), "min_new_tokens": 5, "guidance_scale": 3.0}
    bos = torch.full((2, 1), BOS)

    def scores(**negative) -> torch.Tensor:
        return torch.stack(generate(model, **given, output_scores=True, **negative).scores)[..., 3:]

    torch.testing.assert_close(scores(negative_prompt_ids=bos), scores())
    ids, mask = prompts()
    assert (scores(negative_prompt_ids=ids, negative_prompt_attention_mask=mask) - scores()).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_generation_in_half_precision(dtype: torch.dtype) -> None:
    model = tiny_model(fusion_type="co_attention", decoder_type="transformer").to(dtype)
    sequences = model.generate(pixel_values=pixels(), max_new_tokens=4, min_new_tokens=4, num_beams=2)
    assert sequences.shape == (2, 5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "either `pixel_values` or `image_hidden_states`, and got neither"),
        ({"input_ids": tokens()}, "either `pixel_values` or `image_hidden_states`, and got neither"),
        ({"pixel_values": pixels(), "image_hidden_states": torch.zeros(2, 16, 12)}, "and got both"),
        ({"pixel_values": pixels()[:0]}, "empty batch of images"),
        ({"image_hidden_states": torch.zeros(0, 16, 12)}, "empty batch of images"),
        ({"image_hidden_states": torch.zeros(2, 16, 13)}, "are 13 wide .* gives 12"),
        ({"pixel_values": pixels(), "input_ids": tokens(3)}, "3 rows of `input_ids` do not divide among 2 images"),
        ({"pixel_values": pixels()[:, :1]}, r"`pixel_values` must have the shape"),
        ({"pixel_values": pixels(), "input_ids": tokens() + VOCAB_SIZE}, "outside the vocabulary of 50"),
        (
            {"pixel_values": pixels(), "past_key_values": DynamicCache()},
            r"`cache` \(DynamicCache\) must be a",
        ),
        ({"pixel_values": pixels(), "cache_implementation": "static"}, r"`cache_implementation` \('static'\)"),
        ({"pixel_values": pixels(), "max_new_token": 3}, "max_new_token"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_inputs_that_do_not_fit_are_refused_by_name(inputs: dict, message: str, options: dict) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(max_length=9, **inputs, **options)


def test_a_text_that_outgrows_the_positions_is_refused() -> None:
    model = tiny_model(decoder_type="transformer", max_position_embeddings=4)
    assert model.generate(pixel_values=pixels(), max_new_tokens=4, min_new_tokens=4).shape == (2, 5)
    with pytest.raises(ValueError, match=r"5 tokens .*`max_position_embeddings` \(4\)"):
        model.generate(pixel_values=pixels(), max_new_tokens=5, min_new_tokens=5)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 12])
def test_words_that_would_repeat_something_are_those_of_transformers(size: int, length: int) -> None:
    torch.manual_seed(0)
    texts, scores = torch.randint(0, 4, (8, length)), torch.randn(8, 6)
    before = scores.clone()
    found, expected = (each(size)(texts, scores) for each in (NoRepeatedNGrams, NoRepeatNGramLogitsProcessor))
    assert torch.equal(found, expected)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("ends", [2, [2, 5], [-1, 6, 3]])
@pytest.mark.parametrize("shortest", [1, 4, 5])
def test_texts_that_may_not_end_are_those_of_transformers(ends: int | list[int], shortest: int) -> None:
    torch.manual_seed(0)
    texts, scores = torch.randint(0, 6, (8, 4)), torch.randn(8, 6)
    before = scores.clone()
    for ours, theirs, fields in (
        (MinLength, MinLengthLogitsProcessor, (shortest,)),
        (MinNewTokens, MinNewTokensLengthLogitsProcessor, (1, shortest - 1)),
    ):
        assert torch.equal(ours(*fields, ends)(texts, scores), theirs(*fields, ends)(texts, scores))
    assert torch.equal(scores, before)


def test_generation_takes_them_in_the_place_of_transformers_own() -> None:
    model, own = tiny_model(), NoRepeatNGramLogitsProcessor(2)
    settings = {"pixel_values": pixels(2), "max_new_tokens": 6, "min_new_tokens": 6, "no_repeat_ngram_size": 1}
    for beams in (1, 3):
        for row in model.generate(num_beams=beams, **settings).tolist():
            assert len(set(row)) == len(row)
    processors = model._get_logits_processor(model.generation_config, logits_processor=[own])
    assert [type(each) for each in processors] == [NoRepeatedNGrams]
    assert type(own) is NoRepeatNGramLogitsProcessor  # the caller's stays what it is
    given = [MinLengthLogitsProcessor(3, 2), MinNewTokensLengthLogitsProcessor(1, 2, 2)]
    processors = model._get_logits_processor(model.generation_config, logits_processor=given)
    assert [type(each) for each in processors] == [MinLength, MinNewTokens]

    class Other(NoRepeatNGramLogitsProcessor):
        """A processor of the caller's own make."""

    processors = model._get_logits_processor(model.generation_config, logits_processor=[Other(2)])
    assert [type(each) for each in processors] == [Other]

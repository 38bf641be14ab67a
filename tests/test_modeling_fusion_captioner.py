"""The whole model: causal, the plain preset equal to its formulas, interchangeable inputs, saving and loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import (
    FUSION_TYPES,
    LAYER_TYPES,
    VOCAB_SIZE,
    pixels,
    randomize,
    tiny_config,
    tiny_model,
    tokens,
)
from transformers import AutoModel, AutoModelForImageTextToText

from fusion_captioner import FusionCaptionerConfig, FusionCaptionerForConditionalGeneration, FusionCaptionerModel

ALL_TERMS = {
    "contrastive_loss_weight": 0.5,
    "adversarial_loss_weight": 0.5,
    "reconstruction_loss_weight": 0.5,
    "matching_loss_weight": 0.5,
}
# every fusion and every kind of layer once, not their product
MIXTURES = [(fusion, LAYER_TYPES[number % 3], LAYER_TYPES[-number % 3]) for number, fusion in enumerate(FUSION_TYPES)]


def mixture(fusion_type: str, text_encoder_type: str, decoder_type: str, **fields):
    return tiny_model(
        fusion_type=fusion_type, text_encoder_type=text_encoder_type, decoder_type=decoder_type, **fields
    )


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
@pytest.mark.parametrize("decoder_type", LAYER_TYPES)
def test_logits_depend_on_past_words_only(fusion_type: str, decoder_type: str) -> None:
    text_encoder_type = "lstm" if decoder_type == "transformer" else "transformer"
    model, ids = mixture(fusion_type, text_encoder_type, decoder_type), tokens()
    changed = ids.clone()
    changed[:, 3] = (ids[:, 3] - 3 + 1) % (VOCAB_SIZE - 3) + 3
    before = model(pixel_values=pixels(), input_ids=ids).logits
    after = model(pixel_values=pixels(), input_ids=changed).logits
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert ((before - after)[:, 3:].abs().amax(dim=-1) > 1e-4).all()


@pytest.mark.parametrize("mix", MIXTURES)
def test_every_logit_depends_on_the_image(mix: tuple[str, str, str]) -> None:
    model, ids = mixture(*mix), tokens()
    difference = (
        model(pixel_values=pixels(), input_ids=ids).logits - model(pixel_values=pixels(seed=1), input_ids=ids).logits
    )
    assert (difference.abs().amax(dim=-1) > 1e-5).all()


def affine(layer: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return inputs @ layer.weight.T + layer.bias


def lstm_cells(recurrent: torch.nn.LSTM, inputs: torch.Tensor) -> torch.Tensor:
    """The equations of the LSTM cell, one word after the other."""
    hidden = cell = inputs.new_zeros(len(inputs), recurrent.hidden_size)
    outputs = []
    for step in inputs.unbind(dim=1):
        gates = step @ recurrent.weight_ih_l0.T + recurrent.bias_ih_l0
        gates = gates + hidden @ recurrent.weight_hh_l0.T + recurrent.bias_hh_l0
        entry, forget, candidate, output = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(entry) * torch.tanh(candidate)
        hidden = torch.sigmoid(output) * torch.tanh(cell)
        outputs.append(hidden)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("size", ["tiny", "preset"])
def test_the_plain_preset_is_its_four_formulas(size: str) -> None:
    torch.manual_seed(0)
    if size == "tiny":
        sizes = {
            name: getattr(tiny_config(), name) for name in ("hidden_size", "num_attention_heads", "vision_config")
        }
        config = FusionCaptionerConfig.plain(vocab_size=VOCAB_SIZE, initializer_range=0.2, **sizes)
    else:
        config = FusionCaptionerConfig.plain(vocab_size=VOCAB_SIZE)
    model = FusionCaptionerForConditionalGeneration(config).eval()
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    base, ids, images = model.model, tokens(3, 7), pixels(3)
    # convolutions round otherwise for other memory formats, and fifty of them add up
    images = images.contiguous(memory_format=torch.channels_last)
    for part in (base.region_projection, base.text_encoder, base.fusion, model.decoder, model.lm_head):
        randomize(part, scale=0.05)

    with torch.no_grad():
        pooled = base.image_encoder.backbone(images).pooler_output.flatten(1)  # ResNet's own pooling
        image = affine(base.region_projection, pooled)
        words = base.text_encoder.embedding.weight[ids]
        text = lstm_cells(base.text_encoder.layers.recurrent, words)
        joint = affine(base.fusion.image_projection, image)[:, None] + affine(base.fusion.text_projection, text)
        joint = joint.clamp(min=0)
        generator = lstm_cells(model.decoder.layers.recurrent, torch.cat((joint, words), dim=-1))
        expected = affine(model.lm_head, generator)
        logits = model(pixel_values=images, input_ids=ids).logits
    assert expected.std() > 0.05
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [(), (3,)])
def test_regions_can_stand_for_pixels(frames: tuple[int, ...]) -> None:
    model, ids, images = tiny_model(max_frames=3, **ALL_TERMS), tokens(), pixels(2, *frames)
    with torch.no_grad():
        if frames:
            model.model.frame_embedding.normal_()
        regions = model.get_image_hidden_states(images)
        assert regions.shape == (2, *frames, 16, 12)
        results = []
        for image in ({"pixel_values": images}, {"image_hidden_states": regions}):
            torch.manual_seed(0)  # the matching term draws its negatives
            results.append(model(input_ids=ids, labels=ids, **image))
    torch.testing.assert_close(results[0].logits, results[1].logits)
    torch.testing.assert_close(results[0].loss_terms, results[1].loss_terms)


def test_frames_are_told_apart_and_counted() -> None:
    model, ids, video = tiny_model(max_frames=3), tokens(), pixels(2, 3)
    forwards = model(pixel_values=video, input_ids=ids).logits
    backwards = model(pixel_values=video.flip(1), input_ids=ids).logits
    assert (forwards - backwards).abs().max() > 1e-4
    assert model(pixel_values=video[:, :2], input_ids=ids).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"4 frames are more than `max_frames` \(3\)"):
        model(pixel_values=pixels(2, 4), input_ids=ids)


@pytest.mark.parametrize("mix", MIXTURES)
def test_texts_of_one_image_equal_the_image_repeated(mix: tuple[str, str, str]) -> None:
    model, ids = mixture(*mix), tokens(6)
    shared = model(pixel_values=pixels(), input_ids=ids, labels=ids)
    repeated = model(pixel_values=pixels().repeat_interleave(3, dim=0), input_ids=ids, labels=ids)
    torch.testing.assert_close(shared.logits, repeated.logits)
    torch.testing.assert_close(shared.loss, repeated.loss)


@pytest.mark.parametrize("mix", MIXTURES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logit(mix: tuple[str, str, str], side: str) -> None:
    model, ids = mixture(*mix), tokens()
    pad, mask = torch.zeros(2, 3, dtype=torch.long), torch.ones_like(ids)
    order = (lambda *pair: pair[::-1]) if side == "left" else (lambda *pair: pair)
    padded = model(
        pixel_values=pixels(),
        input_ids=torch.cat(order(ids, pad), dim=1),
        attention_mask=torch.cat(order(mask, pad), dim=1),
    ).logits
    real = padded[:, 3:] if side == "left" else padded[:, :-3]
    torch.testing.assert_close(real, model(pixel_values=pixels(), input_ids=ids).logits)


def test_the_caption_loss_predicts_the_next_labelled_word() -> None:
    model, ids = tiny_model(label_smoothing=0.0), tokens()
    labels = ids.clone()
    labels[:, :2] = -100
    labels[1, 4:] = -100
    output = model(pixel_values=pixels(), input_ids=ids, labels=labels)
    logarithms = output.logits.log_softmax(dim=-1)
    rows = [(0, 2), (0, 3), (0, 4), (0, 5), (1, 2), (1, 3)]
    expected = -torch.stack([logarithms[row, step - 1, ids[row, step]] for row, step in rows]).mean()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.loss_terms["caption"], expected)


def test_without_logits_the_loss_and_its_gradients_are_the_same() -> None:
    model, ids = tiny_model(), tokens()
    labels = ids.clone()
    labels[:, :2] = -100
    gradients = []
    for skip_logits in (False, True):
        output = model(pixel_values=pixels(), input_ids=ids, labels=labels, skip_logits=skip_logits)
        assert (output.logits is None) == skip_logits
        gradients.append(torch.autograd.grad(output.loss, model.lm_head.weight)[0])
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="`skip_logits`"):
        model(pixel_values=pixels(), input_ids=ids, skip_logits=True)


def test_words_are_scored_in_few_sizes() -> None:
    """oneDNN keeps what it has prepared for each size of a product: training in bfloat16 grew by gigabytes."""
    model, ids = tiny_model(), tokens()
    sizes = set()
    model.lm_head.register_forward_pre_hook(lambda module, inputs: sizes.add(inputs[0].shape[:-1]))
    for unlabelled in range(1, ids.shape[1]):
        labels = ids.clone()
        labels[:, :unlabelled] = -100
        model(pixel_values=pixels(), input_ids=ids, labels=labels, skip_logits=True)
    assert sizes == {(64,)}


def test_accumulated_batches_weigh_every_word_the_same() -> None:
    model, ids = tiny_model(), tokens()
    labels = ids.clone()
    labels[1, 2:] = -100
    joint = model(pixel_values=pixels(), input_ids=ids, labels=labels).loss
    words = int((labels[:, 1:] != -100).sum())
    parts = [
        model(pixel_values=pixels()[row], input_ids=ids[row], labels=labels[row], num_items_in_batch=words).loss
        for row in (slice(0, 1), slice(1, 2))
    ]
    torch.testing.assert_close(sum(parts), joint)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_again_it_is_the_same(tmp_path: Path, tied: bool) -> None:
    model, ids = tiny_model(tie_word_embeddings=tied, max_frames=2, **ALL_TERMS), tokens()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in saved) is not tied
    assert sum(tensor.shape == (VOCAB_SIZE, 16) for tensor in saved.values()) == (1 if tied else 2)
    for loaded in (
        FusionCaptionerForConditionalGeneration.from_pretrained(tmp_path),
        AutoModelForImageTextToText.from_pretrained(tmp_path),
    ):
        assert type(loaded) is FusionCaptionerForConditionalGeneration
        assert not loaded.training
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        expected = model(pixel_values=pixels(), input_ids=ids).logits
        assert torch.equal(loaded(pixel_values=pixels(), input_ids=ids).logits, expected)


def test_the_base_model_loads_from_a_captioner(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is FusionCaptionerModel
    torch.testing.assert_close(
        base.get_image_features(pixels()).pooler_output, model.get_image_features(pixels()).pooler_output
    )


def test_loading_by_device_map_and_data_type(tmp_path: Path) -> None:
    model, ids = tiny_model(), tokens()
    model.save_pretrained(tmp_path)
    placed = FusionCaptionerForConditionalGeneration.from_pretrained(tmp_path, device_map="cpu")
    expected = model(pixel_values=pixels(), input_ids=ids).logits
    assert torch.equal(placed(pixel_values=pixels(), input_ids=ids).logits, expected)
    half = FusionCaptionerForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_resizing_the_vocabulary_keeps_the_known_words(tmp_path: Path, tied: bool) -> None:
    model, ids = tiny_model(tie_word_embeddings=tied), tokens() % 40
    before = model(pixel_values=pixels(), input_ids=ids).logits
    for size in (60, 40):
        model.resize_token_embeddings(size)
        assert model.config.vocab_size == size
        assert model.lm_head.bias.shape == (size,)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
        after = model(pixel_values=pixels(), input_ids=ids).logits
        assert after.shape[-1] == size
        torch.testing.assert_close(after[..., :40], before[..., :40])
    model.save_pretrained(tmp_path)
    loaded = FusionCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixel_values=pixels(), input_ids=ids).logits, after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mix", MIXTURES)
def test_half_precision_stays_near_single(mix: tuple[str, str, str], dtype: torch.dtype) -> None:
    model, ids = mixture(*mix, **ALL_TERMS), tokens()
    torch.manual_seed(0)
    expected = model(pixel_values=pixels(), input_ids=ids, labels=ids)
    torch.manual_seed(0)
    output = model.to(dtype)(pixel_values=pixels(), input_ids=ids, labels=ids)
    assert output.logits.dtype == dtype
    assert output.loss.dtype == torch.float32
    assert (output.logits.float() - expected.logits).abs().mean() < 0.05 * expected.logits.std()
    assert (output.loss - expected.loss).abs() < 0.1 * expected.loss


@pytest.mark.slow
@pytest.mark.parametrize("mix", [("attention", "lstm", "lstm"), ("co_attention", "transformer", "transformer")])
def test_compiled_it_is_the_same(mix: tuple[str, str, str]) -> None:
    torch._dynamo.reset()
    model, ids = mixture(*mix), tokens()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for inputs in ({"labels": ids}, {"use_cache": False}):
            expected = model(pixel_values=pixels(), input_ids=ids, **inputs)
            output = compiled(pixel_values=pixels(), input_ids=ids, **inputs)
            torch.testing.assert_close(output.logits, expected.logits)
            torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("mix", [("attention", "lstm", "gru"), ("co_attention", "transformer", "transformer")])
def test_checkpointed_activations_give_the_same_gradients(mix: tuple[str, str, str], use_reentrant: bool) -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        model, ids = mixture(*mix, **ALL_TERMS).train(), tokens()
        model.freeze_image_encoder()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        count: list[int] = []
        model.model.fusion.query.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(0)
        model(pixel_values=pixels(), input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        calls.append(len(count))
    assert calls[1] == 2 * calls[0]  # each computed again in the backward pass
    assert sum(gradient is not None for gradient in gradients[0].values()) > 10
    torch.testing.assert_close(
        {name: gradient for name, gradient in gradients[1].items() if gradient is not None},
        {name: gradient for name, gradient in gradients[0].items() if gradient is not None},
    )


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_attentions_tell_where_each_word_looked(fusion_type: str) -> None:
    model, ids = tiny_model(fusion_type=fusion_type), tokens(4)
    output = model(pixel_values=pixels(), input_ids=ids, output_attentions=True)
    if fusion_type not in ("attention", "co_attention"):
        assert output.attentions is None
        return
    (weights,) = output.attentions
    assert weights.shape == (4, 2, 6, 16)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, 2, 6))
    plain = model(pixel_values=pixels(), input_ids=ids)
    assert plain.attentions is None
    torch.testing.assert_close(output.logits, plain.logits)


@pytest.mark.parametrize("fusion_type", ["attention", "co_attention"])
def test_attentions_have_gradients(fusion_type: str) -> None:
    model, ids = tiny_model(fusion_type=fusion_type), tokens(4)
    output = model(pixel_values=pixels(), input_ids=ids, labels=ids, output_attentions=True)
    (weights,) = output.attentions
    weights.retain_grad()
    output.loss.backward()
    assert weights.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_what_is_returned_is_a_choice() -> None:
    model, ids = tiny_model(), tokens()
    full = model(pixel_values=pixels(), input_ids=ids, output_hidden_states=True)
    assert [state.shape for state in full.hidden_states] == [(2, 6, 16)] * 3
    last = model(pixel_values=pixels(), input_ids=ids, logits_to_keep=1)
    torch.testing.assert_close(last.logits, full.logits[:, -1:])
    assert last.hidden_states is None
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    some = model(pixel_values=pixels(), input_ids=ids, logits_to_keep=chosen)
    torch.testing.assert_close(some.logits, full.logits[chosen])
    as_tuple = model(pixel_values=pixels(), input_ids=ids, use_cache=False, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], full.logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": None}, "`input_ids` is missing; .* BOS"),
        ({"input_ids": tokens()[:, :0]}, "`input_ids` holds no token; .* BOS"),
        ({"pixel_values": None}, "either `pixel_values` or `image_hidden_states`, and got neither"),
        ({"image_hidden_states": torch.zeros(2, 16, 12)}, "and got both"),
        ({"pixel_values": None, "image_hidden_states": torch.zeros(2, 16, 13)}, "are 13 wide .* gives 12"),
        ({"pixel_values": pixels()[:, :1]}, r"`pixel_values` must have the shape .* \(2, 1, 32, 32\)"),
        ({"input_ids": tokens(3)}, "3 rows of `input_ids` do not divide among 2 images"),
        ({"pixel_values": pixels()[:0]}, r"batch is empty \(0 images, 2 texts\)"),
        ({"input_ids": tokens()[:0]}, r"batch is empty \(2 images, 0 texts\)"),
        ({"input_ids": tokens() + VOCAB_SIZE}, r"token id \d+ is outside the vocabulary of 50 .* tokenizer"),
        ({"input_ids": tokens() - VOCAB_SIZE}, r"token id -\d+ is outside the vocabulary of 50"),
        ({"labels": tokens() + VOCAB_SIZE}, r"token id \d+ is outside the vocabulary of 50"),
        ({"labels": tokens()[:, 1:]}, r"`labels` \(2, 5\) must have the shape of `input_ids` \(2, 6\)"),
        ({"pixel_values": pixels(2, 2)}, r"2 frames are more than `max_frames` \(0\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny_model()(**({"input_ids": tokens(), "pixel_values": pixels()} | changes))
    assert "\n" not in str(caught.value)


def test_a_cache_already_holds_the_images() -> None:
    model = tiny_model()
    cache = model(pixel_values=pixels(), input_ids=tokens()).past_key_values
    with pytest.raises(ValueError, match="`cache` holds the images already"):
        model(pixel_values=pixels(), input_ids=tokens()[:, -1:], past_key_values=cache)


def test_a_frozen_image_encoder_takes_no_part_in_training() -> None:
    model, ids = tiny_model(), tokens()
    model.freeze_image_encoder()
    model.train()
    encoder = {name: value.clone() for name, value in model.state_dict().items() if "image_encoder." in name}
    assert encoder
    assert all(name.startswith("model.image_encoder.") for name in encoder)

    def step() -> None:
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
        model(pixel_values=pixels(), input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    def unchanged() -> list[bool]:
        return [torch.equal(model.state_dict()[name], value) for name, value in encoder.items()]

    before = model.lm_head.bias.clone()
    step()
    assert not torch.equal(model.lm_head.bias, before)
    assert all(unchanged())
    model.unfreeze_image_encoder()
    model.train()
    step()
    assert not any(same for same, value in zip(unchanged(), encoder.values()) if value.is_floating_point())


def test_fresh_weights_follow_the_config() -> None:
    config = tiny_config(contrastive_loss_weight=1.0, max_frames=2, logit_scale_init_value=1.5, initializer_range=0.02)
    torch.manual_seed(0)
    model = FusionCaptionerForConditionalGeneration(config)
    assert model.alignment.logit_scale.item() == 1.5
    assert (model.model.frame_embedding == 0).all()
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.02, rel=0.1)
    for gate in model.decoder.layers.recurrent.weight_hh_l0.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16), rtol=0, atol=1e-5)


@pytest.mark.parametrize("text_encoder_type", LAYER_TYPES)
def test_word_dropout_hides_words_in_training_only(text_encoder_type: str) -> None:
    model = tiny_model(word_dropout=0.9, text_encoder_type=text_encoder_type)
    first, second = tokens(seed=1), tokens(seed=2)
    encoder = model.model.text_encoder
    assert torch.equal(encoder(first)[0], encoder(first)[0])
    encoder.train()
    torch.manual_seed(0)
    _, embeddings, _ = encoder(first.repeat(50, 1))
    hidden = (embeddings == 0).all(dim=-1)
    assert not hidden[:, 0].any()
    assert hidden[:, 1:].float().mean().item() == pytest.approx(0.9, abs=0.05)
    assert not torch.equal(encoder(first)[0], encoder(second)[0])


def test_image_dropout_hides_features_of_all_regions_in_training_only() -> None:
    model = tiny_model(image_dropout=0.5).model
    width = model.image_encoder.hidden_size
    regions = torch.ones(64, 4, width)
    model.region_projection = torch.nn.Linear(width, width, bias=False)
    model.region_projection.weight.data = torch.eye(width)
    assert torch.equal(model.eval().embed_regions(regions), regions)
    torch.manual_seed(0)
    kept = model.train().embed_regions(regions)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert kept[:, 0].mean().item() == pytest.approx(1, abs=0.15)
    assert not torch.equal(model.embed_image(regions)[0], model.embed_image(regions)[0])


def test_fresh_text_states_weigh_as_much_as_the_image() -> None:
    model = FusionCaptionerForConditionalGeneration(
        FusionCaptionerConfig(vision_config=tiny_config().vision_config, vocab_size=VOCAB_SIZE)
    )
    output = model.eval()(pixel_values=pixels(), input_ids=tokens(), output_hidden_states=True)
    assert 0.5 < output.hidden_states[0].std() < 1.1
    plain = FusionCaptionerForConditionalGeneration(
        FusionCaptionerConfig.plain(vision_config=tiny_config().vision_config, vocab_size=VOCAB_SIZE)
    )
    assert isinstance(plain.model.text_encoder.norm, torch.nn.Identity)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text_encoder_type": "embedding"}, '`text_pooling` \\("last"\\)'),
        ({"matching_loss_weight": 1.0}, "`contrastive_loss_weight` above 0"),
        ({"matching_negatives": 0}, "`matching_negatives` \\(0\\) must be at least 1"),
    ],
)
def test_fields_given_on_loading_are_checked(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=words):
        FusionCaptionerForConditionalGeneration.from_pretrained(tmp_path, **fields)

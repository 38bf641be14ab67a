"""Concepts: found in regions, learned from captions, and regions of the fusion themselves."""

import math
from pathlib import Path

import pytest
import torch
from tiny_models import (
    CONCEPTS,
    FUSION_TYPES,
    LAYER_TYPES,
    audio_config,
    log_mel,
    pixels,
    sounds,
    tiny_head,
    tiny_model,
    tokens,
)

from fusion_captioner import (
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerForSequenceClassification,
)
from fusion_captioner.concepts import ConceptHead

IDS, COUNT = CONCEPTS["concept_token_ids"], CONCEPTS["num_concepts"]
MIXTURES = [(fusion, LAYER_TYPES[number % 3]) for number, fusion in enumerate(FUSION_TYPES)]
BOS = 1


def model_of(fusion_type: str = "attention", layer_type: str = "lstm", **fields):
    """With scores that differ between images."""
    fields = {"fusion_type": fusion_type, "text_encoder_type": layer_type, "decoder_type": layer_type} | fields
    model = tiny_model(**CONCEPTS | fields)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.model.concept_head.classifier.weight, std=2.0)
    return model


def captions(*rows: list[int]) -> dict[str, torch.Tensor]:
    """Texts behind BOS, padded on the right, with labels."""
    width = max(map(len, rows)) + 1
    ids = torch.tensor([[BOS, *row] + [0] * (width - 1 - len(row)) for row in rows])
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill((mask == 0) | (ids == BOS), -100)}


def add_bias(logits: torch.Tensor, ids: list[int], added: dict[int, torch.Tensor]) -> None:
    """To the logits `(L, V)` of a text what is added to those of each token that it does not have up to there."""
    for place in range(len(ids)):
        for token, bias in added.items():
            logits[place, token] += 0 if token in ids[: place + 1] else bias


def targets(model, texts: dict[str, torch.Tensor], images: int, shown: torch.Tensor | None = None):
    """Token ids of the true concepts, and of those that count, of each image."""
    found = model.model.concept_head.targets(
        texts["input_ids"], texts["labels"], texts["attention_mask"], shown, images
    )
    ids = torch.tensor(model.config.concept_ids)
    return [[ids[row].tolist() for row in rows] for rows in found]


def test_scores_are_half_the_mean_and_half_a_smooth_maximum() -> None:
    head = model_of().model.concept_head
    regions = torch.randn(2, 5, head.norm.normalized_shape[0])
    scores = head.classifier(head.norm(regions))
    for image in range(2):
        for concept in range(len(IDS)):
            of_regions = scores[image, :, concept].tolist()
            smooth = math.log(sum(math.exp(2 * score) for score in of_regions) / 5) / 2
            expected = (sum(of_regions) / 5 + smooth) / 2
            assert head(regions)[image, concept].item() == pytest.approx(expected, abs=1e-5)


def test_scores_of_half_precision_are_pooled_in_single() -> None:
    head = model_of().model.concept_head
    regions = torch.randn(2, 500, head.norm.normalized_shape[0])
    expected = head(regions)
    found = head.bfloat16()(regions.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.15)


def test_without_concepts_nothing_is_built(tmp_path: Path) -> None:
    plain, named = tiny_model(), tiny_model(concept_token_ids=IDS)
    assert plain.state_dict().keys() == named.state_dict().keys()
    assert not any("concept" in name for name in plain.state_dict())
    assert not any("concept" in name for name, _ in tiny_model(num_concepts=0).named_modules())
    learns_only = tiny_model(**CONCEPTS | {"num_concepts": 0})
    assert {name.split(".")[1] for name, _ in learns_only.named_parameters() if "concept" in name} == {"concept_head"}
    with pytest.raises(ValueError, match="`num_concepts`, `concept_loss_weight` and `concept_bias` are 0"):
        plain.predict_concepts(pixels())


def test_saved_and_loaded_again_it_is_the_same(tmp_path: Path) -> None:
    model, texts = model_of(), captions([5, 9, 8], [11, 2])
    expected = model(pixel_values=pixels(), **texts)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "concepts.py").is_file()
    loaded = FusionCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    output = loaded(pixel_values=pixels(), **texts)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)


def test_a_checkpoint_without_concepts_starts_with_rare_ones(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    loaded = FusionCaptionerForConditionalGeneration.from_pretrained(tmp_path, **CONCEPTS)
    found = loaded.predict_concepts(pixels())
    assert found.shape == (2, len(IDS))
    torch.testing.assert_close(
        found, torch.full_like(found, torch.tensor(ConceptHead.BIAS).sigmoid()), rtol=0.3, atol=0
    )
    assert 0.5 < loaded.model.concept_regions.type_embedding.std() < 1.5
    assert loaded.model.concept_head.token_ids.tolist() == IDS


def test_the_likeliest_concepts_follow_the_image_s_regions() -> None:
    model = model_of()
    regions = model.get_image_hidden_states(pixels())
    with torch.no_grad():
        embedded = model.model.embed_regions(regions)
        plain = model.model.region_projection(regions)
    assert torch.equal(embedded[:, : plain.shape[1]], plain) and embedded.shape[1] == plain.shape[1] + COUNT
    probabilities = model.predict_concepts(image_hidden_states=regions)
    assert torch.equal(probabilities, model.predict_concepts(pixels()))
    part = model.model.concept_regions
    for image, row in enumerate(probabilities.tolist()):
        best = sorted(range(len(IDS)), key=lambda place: -row[place])[:COUNT]
        for number, place in enumerate(best):
            word = part.norm(model.get_input_embeddings().weight[IDS[place]])
            torch.testing.assert_close(
                embedded[image, plain.shape[1] + number], row[place] * word + part.type_embedding
            )
    assert (probabilities[0].topk(COUNT).indices != probabilities[1].topk(COUNT).indices).any()


@pytest.mark.parametrize("mix", MIXTURES)
def test_the_words_found_change_the_caption_and_learn_from_it(mix: tuple[str, str]) -> None:
    model, ids = model_of(*mix, concept_loss_weight=0.0), tokens(4)
    model.freeze_image_encoder()
    output = model(pixel_values=pixels(), input_ids=ids, labels=ids)
    assert set(output.loss_terms) == {"caption"}
    output.loss.backward()
    for name, parameter in model.model.named_parameters():
        if name.startswith("concept_"):
            assert parameter.grad.abs().max() > 0, name
    with torch.no_grad():
        model.model.concept_head.classifier.bias[model.predict_concepts(pixels()).argmin()] += 50.0
        changed = model(pixel_values=pixels(), input_ids=ids).logits
    assert (changed - output.logits).abs().max() > 1e-3


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("mix", MIXTURES)
def test_generated_words_depend_on_neither_cache_nor_neighbours(mix: tuple[str, str], num_beams: int) -> None:
    model, images = model_of(*mix, concept_bias=1.5), pixels(3)
    options = {"num_beams": num_beams, "max_new_tokens": 6, "min_new_tokens": 6}
    cached = model.generate(pixel_values=images, **options)
    assert torch.equal(cached, model.generate(pixel_values=images, use_cache=False, **options))
    alone = [model.generate(pixel_values=image.unsqueeze(0), **options) for image in images]
    assert torch.equal(cached, torch.cat(alone))


@pytest.mark.parametrize("num_concepts", [0, COUNT])
def test_likely_concepts_add_to_the_scores_of_their_words(num_concepts: int) -> None:
    model = model_of(num_concepts=num_concepts, concept_bias=1.5)
    texts = captions([5, 9, 8], [11, 2], [6], [7, 8, 5, 9])  # two of each image
    biased = model(pixel_values=pixels(), **texts)
    probabilities = model.predict_concepts(pixels())
    model.config.concept_bias = 0.0
    plain = model(pixel_values=pixels(), **texts)
    expected = plain.logits.detach().clone()
    for text, ids in enumerate(texts["input_ids"].tolist()):
        add_bias(expected[text], ids, dict(zip(IDS, 1.5 * probabilities[text // 2])))
    torch.testing.assert_close(biased.logits, expected)

    model.config.concept_bias = 1.5
    targets = texts["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(
        expected[:, :-1][targets != -100], targets[targets != -100], label_smoothing=model.config.label_smoothing
    )
    torch.testing.assert_close(biased.loss_terms["caption"], loss)
    without_logits = model(pixel_values=pixels(), skip_logits=True, **texts)
    torch.testing.assert_close(without_logits.loss_terms["caption"], loss)
    # of some tokens only, as self-critical training asks for them
    wanted = texts["attention_mask"].bool() & (torch.arange(5) % 2 == 1)
    some = model(texts["input_ids"], texts["attention_mask"], pixels(), logits_to_keep=wanted)
    torch.testing.assert_close(some.logits, expected[wanted])
    last = model(texts["input_ids"], pixel_values=pixels(), logits_to_keep=1)
    torch.testing.assert_close(last.logits[3], expected[3, -1:])  # the one text without padding


def test_concepts_of_other_languages_add_nothing() -> None:
    lists = [[5, 11, 20], [8, 11], [30]]
    fields = {"languages": ["en", "de", "zh"], "language_token_ids": [47, 48, 49], "concept_token_ids": lists}
    model = model_of(**fields, concept_bias=1.5)
    texts = captions([48, 5], [49, 9], [47, 6], [7, 8])  # the last one names no language
    biased = model(texts["input_ids"], pixel_values=pixels())
    probabilities = model.predict_concepts(pixels())
    model.config.concept_bias = 0.0
    expected = model(texts["input_ids"], pixel_values=pixels()).logits.clone()
    for text, language in enumerate([1, 2, 0, 0]):
        places = [model.config.concept_ids.index(each) for each in lists[language]]
        added = dict(zip(lists[language], 1.5 * probabilities[text // 2, places]))
        add_bias(expected[text], texts["input_ids"][text].tolist(), added)
    torch.testing.assert_close(biased.logits, expected)
    model.config.concept_bias = 1e4  # enough that each of a language's concepts is said, once, before all other words
    for language, ids in zip(fields["languages"], lists):
        for options in ({}, {"num_beams": 2}, {"use_cache": False}, {"num_beams": 2, "use_cache": False}):
            options |= {"max_new_tokens": len(ids), "min_new_tokens": len(ids)}
            for caption in model.generate(pixel_values=pixels(), language=language, **options)[:, 2:].tolist():
                assert sorted(caption) == ids


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_activations_give_the_same_gradients(use_reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, ids = model_of("co_attention", "transformer").train(), tokens()
        model.freeze_image_encoder()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model(pixel_values=pixels(), input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert sum("concept" in name for name in gradients[0]) == 7
    torch.testing.assert_close(gradients[1], gradients[0])


def test_captions_name_concepts() -> None:
    model = model_of()
    texts = captions([5, 6, 8], [8, 11, 2], [7, 2], [44, 44, 3])
    true, counted = targets(model, texts, images=2)
    assert true == [[5, 8, 11], [44]] and counted == [IDS, IDS]
    output = model(pixel_values=pixels(), **texts)
    scores = model.predict_concepts(pixels()).logit()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        scores, torch.tensor([[each in row for each in IDS] for row in true]).float(), reduction="sum"
    )
    torch.testing.assert_close(output.loss_terms["concept"], expected / 4)
    torch.testing.assert_close(output.loss, output.loss_terms["caption"] + output.loss_terms["concept"])


@pytest.mark.parametrize("num_concepts", [0, 3])
def test_the_loss_is_the_same_whether_concepts_enter_the_fusion(num_concepts: int) -> None:
    texts = captions([5, 6, 8], [7, 2])
    model = model_of(num_concepts=num_concepts)
    model.model.concept_head.load_state_dict(model_of().model.concept_head.state_dict())
    scores = model.predict_concepts(pixels()).logit()
    true = torch.tensor([[each in row for each in IDS] for row in ([5, 8], [])])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, true.float(), reduction="sum") / 2
    torch.testing.assert_close(model(pixel_values=pixels(), **texts).loss_terms["concept"], expected)


@pytest.mark.parametrize("on_the_left", [False, True])
def test_rows_that_do_not_describe_a_shown_image_count_nothing(on_the_left: bool) -> None:
    model = model_of()
    texts = captions([5, 8], [11, 14], [17, 20], [23, 26])
    texts["labels"][1, 1] = -100  # an answer behind a prompt
    texts["labels"][2] = -100  # no caption
    if on_the_left:
        pad = torch.zeros(4, 2, dtype=torch.long)
        fills = {"input_ids": pad, "attention_mask": pad, "labels": pad - 100}
        texts = {name: torch.cat((fills[name], tensor), dim=1) for name, tensor in texts.items()}
    shown = torch.tensor([True, True, True, False])
    true, counted = targets(model, texts, 4, shown)
    assert true == [[5, 8], [], [], []] and counted == [IDS, [], [], []]
    # two texts per image: one caption is enough
    true, counted = targets(model, texts, 2, shown[[0, 3]])
    assert true == [[5, 8], []] and counted == [IDS, []]


@pytest.mark.parametrize("frames", [(), (2,)])
def test_a_hidden_image_teaches_no_concept(frames: tuple[int, ...]) -> None:
    model, texts = model_of(max_frames=2), captions([5, 8], [11, 14])
    torch.nn.init.normal_(model.model.frame_embedding)
    regions = model.get_image_hidden_states(pixels(2, *frames))
    regions[1] = 0
    both = model(image_hidden_states=regions, **texts)
    first = model(image_hidden_states=regions[:1], **{name: tensor[:1] for name, tensor in texts.items()})
    torch.testing.assert_close(both.loss_terms["concept"], first.loss_terms["concept"])
    hidden = model(image_hidden_states=torch.zeros_like(regions), **texts)
    assert hidden.loss_terms["concept"] == 0 and hidden.loss.isfinite()


def test_hidden_in_training_an_image_teaches_no_concept() -> None:
    model, texts = model_of(modality_dropout=0.5).train(), captions([5, 8], [11, 14])
    torch.manual_seed(0)
    found = {round(model(pixel_values=pixels(), **texts).loss_terms["concept"].item(), 3) for _ in range(30)}
    assert len(found) > 2 and 0.0 in found


def test_a_caption_of_one_language_does_not_tell_that_words_of_another_are_wrong() -> None:
    lists = [[5, 8, 11], [8, 20], [30]]
    fields = {"languages": ["en", "de", "zh"], "language_token_ids": [47, 48, 49], "concept_token_ids": lists}
    model = model_of(**fields)
    assert model.config.concept_ids == [5, 8, 11, 20, 30]
    texts = captions([47, 5, 2], [47, 8, 20], [48, 20, 2], [47, 11, 2], [49, 7, 2], [49, 30, 2])
    texts["labels"][:, 1] = -100
    true, counted = targets(model, texts, images=3)
    # 20 was said in an English caption although it is no English concept
    assert true == [[5, 8, 20], [11, 20], [30]] and counted == [[5, 8, 11, 20], [5, 8, 11, 20], [30]]
    assert model(pixel_values=pixels(3), **texts).loss_terms["concept"].isfinite()
    # a prompt behind the language's token
    texts["labels"][:, 2] = -100
    assert targets(model, texts, images=3)[1] == [[], [], []]


def test_concepts_stand_between_the_regions_of_image_and_sound() -> None:
    model, ids = model_of(audio_config=audio_config(), num_audio_regions=4), tokens()
    heard = log_mel(sounds(220.0, 880.0))
    (weights,) = model(pixel_values=pixels(), input_ids=ids, input_features=heard, output_attentions=True).attentions
    assert weights.shape[-1] == 16 + COUNT + 4
    captions_heard = model.generate(pixel_values=pixels(), input_features=heard, max_new_tokens=5)
    assert torch.equal(
        captions_heard, model.generate(pixel_values=pixels(), input_features=heard, max_new_tokens=5, use_cache=False)
    )


def test_frames_of_a_video_are_searched_together() -> None:
    model = model_of(max_frames=3)
    frames = pixels(2, 3)
    assert model.predict_concepts(frames).shape == (2, len(IDS))
    regions = model.get_image_hidden_states(frames)
    assert model.model.embed_regions(regions).shape[1] == 3 * 16 + COUNT
    assert torch.equal(
        model.generate(pixel_values=frames, max_new_tokens=5),
        model.generate(pixel_values=frames, max_new_tokens=5, use_cache=False),
    )


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_a_missing_image_has_no_concepts(fusion_type: str) -> None:
    model = tiny_head(FusionCaptionerForSequenceClassification, fusion_type=fusion_type, num_labels=3, **CONCEPTS)
    ids, images = tokens(2), pixels(2)
    with torch.no_grad():
        both, text = model(input_ids=ids, pixel_values=images).logits, model(input_ids=ids).logits
        mixed = model(input_ids=ids, pixel_values=images, has_image=torch.tensor([True, False])).logits
    torch.testing.assert_close(mixed, torch.stack((both[0], text[1])))


def test_a_tiny_model_learns_which_words_go_with_an_image() -> None:
    """Regions hold a mark for each word of their captions; the words of new images are found, and said."""
    torch.manual_seed(0)
    ids = torch.tensor(IDS[:8])
    model = tiny_model(**CONCEPTS | {"concept_token_ids": ids.tolist(), "initializer_range": 0.05}).train()
    marks = 5 * torch.eye(len(ids), model.model.image_encoder.hidden_size)

    def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        shown = torch.rand(rows, len(ids)).topk(2, dim=1).indices.sort(dim=1).values  # (rows, 2)
        regions = torch.randn(rows, 4, marks.shape[1])
        regions[:, 1:3] += marks[shown]
        return regions, shown

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(120):
        regions, shown = batch(32)
        output = model(image_hidden_states=regions, **captions(*([*row, 2] for row in ids[shown].tolist())))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss_terms["concept"].item())
    assert losses[-1] < losses[0] / 4
    regions, shown = batch(100)
    found = model.eval().predict_concepts(image_hidden_states=regions).topk(2, dim=1).indices.sort(dim=1).values
    assert (found == shown).all(dim=1).float().mean() > 0.9
    said = model.generate(image_hidden_states=regions, max_new_tokens=3)[:, 1:3]
    assert (said == ids[shown]).float().mean() > 0.6

"""Two towers and a score of fused pairs: losses, re-ranking, loading, and the zero-shot pipeline."""

from pathlib import Path

import pytest
import torch
from hub_form_push import COLOURS, captioner
from PIL import Image
from tiny_models import pixels, tiny_config, tiny_head, tiny_model, tokens
from transformers import AutoModelForZeroShotImageClassification, pipeline

from fusion_captioner import FusionCaptionerForImageTextRetrieval
from fusion_captioner.losses import hardest_negative_loss, info_nce_loss

TERMS = {"contrastive_loss_weight": 1.0, "matching_loss_weight": 0.5}


def retriever(**fields) -> FusionCaptionerForImageTextRetrieval:
    return tiny_head(FusionCaptionerForImageTextRetrieval, **(TERMS | fields))


def test_logits_are_scaled_similarities_of_any_number_of_images_and_texts() -> None:
    model = retriever()
    output = model(pixel_values=pixels(2), input_ids=tokens(5))
    assert output.loss is None
    images = model.get_image_features(pixels(2)).pooler_output
    texts = model.get_text_features(tokens(5)).pooler_output
    expected = model.alignment.logit_scale.exp() * images @ texts.T
    torch.testing.assert_close(output.logits_per_image, expected)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    regions = model.get_image_hidden_states(pixels(2))
    cached = model(image_hidden_states=regions, input_ids=tokens(5))
    torch.testing.assert_close(cached.logits_per_image, expected)


@pytest.mark.parametrize("loss_type", ["info_nce", "hinge"])
def test_the_loss_is_the_configured_one_weighted(loss_type: str) -> None:
    model = retriever(contrastive_loss_type=loss_type, adversarial_loss_weight=0.25)
    output = model(pixel_values=pixels(2), input_ids=tokens(4), return_loss=True)
    own = torch.tensor([0, 0, 1, 1])
    if loss_type == "hinge":
        contrastive = hardest_negative_loss(output.image_embeds, output.text_embeds, 0.2, own)
    else:
        contrastive = info_nce_loss(output.image_embeds, output.text_embeds, model.alignment.logit_scale.exp(), own)
    terms = output.loss_terms
    assert set(terms) == {"contrastive", "adversarial", "matching"}
    torch.testing.assert_close(terms["contrastive"], contrastive)
    torch.testing.assert_close(
        output.loss, terms["contrastive"] + 0.25 * terms["adversarial"] + 0.5 * terms["matching"]
    )


def test_pairs_are_scored_alone_or_among_others_and_padding_changes_nothing() -> None:
    model, ids = retriever(), tokens(3)
    regions = model.get_image_hidden_states(pixels(2))
    states = model.get_text_features(ids).last_hidden_state
    pairs = torch.tensor([[0, 0], [0, 1], [2, 1], [1, 0], [2, 0]])
    scores = model.rerank(pairs, states, regions)
    for pair, score in zip(pairs, scores):
        fused = model.model(input_ids=ids[pair[:1]], pixel_values=pixels(2)[pair[1:]]).fused_hidden_states
        torch.testing.assert_close(model.alignment.matching.head(fused).mean(), score)
    assert scores.unique().numel() == 5
    padded, mask = torch.cat((ids, torch.zeros(3, 2, dtype=torch.long)), dim=1), torch.ones(3, 8, dtype=torch.long)
    mask[:, 6:] = 0
    states = model.get_text_features(padded, mask).last_hidden_state
    torch.testing.assert_close(model.rerank(pairs, states, regions, mask), scores)


DIRECTIONS = torch.randn(6, 12, generator=torch.Generator().manual_seed(5))


def scenes(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Regions `(6, 4, 12)`, of which one shows something, and texts `(6, 5)`, of which one word names it."""
    generator = torch.Generator().manual_seed(seed)
    shown, rows = torch.randperm(6, generator=generator), torch.arange(6)
    regions = 0.3 * torch.randn(6, 4, 12, generator=generator)
    regions[rows, torch.randint(4, (6,), generator=generator)] += DIRECTIONS[shown]
    ids = torch.randint(20, 50, (6, 5), generator=generator)
    ids[rows, torch.randint(5, (6,), generator=generator)] = 10 + shown
    return regions, ids


def test_both_scores_learn_which_text_belongs_to_which_image() -> None:
    torch.manual_seed(0)
    fields = {"fusion_type": "bilinear", "hidden_size": 32, "initializer_range": 0.1}
    model = FusionCaptionerForImageTextRetrieval(tiny_config(**TERMS | fields)).train()
    model.freeze_image_encoder()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.005)
    for seed in range(250):
        regions, ids = scenes(seed)
        loss = model(image_hidden_states=regions, input_ids=ids, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    right: dict[str, list[torch.Tensor]] = {"similarity": [], "matching": []}
    with torch.no_grad():
        for seed in range(1000, 1010):
            regions, ids = scenes(seed)
            states = model.get_text_features(ids).last_hidden_state
            similarity = model(image_hidden_states=regions, input_ids=ids).logits_per_text
            matching = model.rerank(pairs, states, regions).view(6, 6)
            for name, scores in (("similarity", similarity), ("matching", matching)):
                right[name].append(scores.argmax(dim=1) == torch.arange(6))
    for name, hits in right.items():
        assert torch.cat(hits).float().mean() > 0.85, name


@pytest.mark.parametrize(
    ("fields", "inputs", "message"),
    [
        ({}, {"input_ids": None}, "`input_ids` is missing"),
        ({}, {"pixel_values": None}, "either `pixel_values` or `image_hidden_states`, and got neither"),
        ({}, {"input_ids": tokens(3), "return_loss": True}, "3 rows of `input_ids` do not divide among 2 images"),
        ({}, {"input_ids": tokens() + 50}, "outside the vocabulary of 50"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(fields: dict, inputs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retriever(**fields)(**({"pixel_values": pixels(), "input_ids": tokens()} | inputs))


def test_what_the_losses_do_not_train_cannot_be_used() -> None:
    with pytest.raises(ValueError, match=r"`contrastive_loss_weight` \(0\.0\) must be above 0 .*from_pretrained"):
        FusionCaptionerForImageTextRetrieval(tiny_config())
    model = retriever(matching_loss_weight=0.0)
    pairs, states = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 6, 16)
    with pytest.raises(ValueError, match=r"`matching_loss_weight` \(0\.0\) is 0, .* no matching score"):
        model.rerank(pairs, states, torch.zeros(1, 16, 12))
    with pytest.raises(ValueError, match=r"`pairs` \(2,\) must have the shape \(pairs, 2\)"):
        retriever().rerank(pairs[0], states, torch.zeros(1, 16, 12))


def test_towers_load_from_a_captioner_that_was_aligned(tmp_path: Path) -> None:
    source = tiny_model(**TERMS)
    source.save_pretrained(tmp_path)
    model, report = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is FusionCaptionerForImageTextRetrieval
    assert not report["missing_keys"]
    assert {name.split(".")[0] for name in report["unexpected_keys"]} == {"decoder", "lm_head"}
    expected = source.get_text_features(tokens()).pooler_output
    torch.testing.assert_close(model.get_text_features(tokens()).pooler_output, expected)
    tiny_model().save_pretrained(tmp_path / "plain")
    fresh, report = FusionCaptionerForImageTextRetrieval.from_pretrained(
        tmp_path / "plain", contrastive_loss_weight=1.0, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"alignment.logit_scale"}
    assert fresh.alignment.logit_scale.item() == pytest.approx(2.6592)


def test_the_zero_shot_pipeline_ranks_labels_as_the_model_does(tmp_path: Path) -> None:
    source, processor = captioner()
    source.config.contrastive_loss_weight = 1.0
    torch.manual_seed(0)
    model = FusionCaptionerForImageTextRetrieval(source.config).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    photo = Image.new("RGB", (40, 32), "red")
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    found = classify(photo, candidate_labels=list(COLOURS), hypothesis_template="a {} square")
    texts = [f"a {colour} square" for colour in COLOURS]
    inputs = processor(images=photo, text=texts, add_eos=True, return_tensors="pt")
    scores = model(**inputs).logits_per_image.softmax(dim=1)[0].tolist()
    assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(dict(zip(COLOURS, scores)), abs=1e-5)

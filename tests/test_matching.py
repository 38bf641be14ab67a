"""Scores of pairs of texts and images: by the fused states, or by words and the regions near them."""

import pytest
import torch
from tiny_models import pixels, tiny_model, tokens

from fusion_captioner import FusionCaptionerForImageTextRetrieval
from fusion_captioner.matching import MATCHINGS, WordRegionMatching
from fusion_captioner.modeling_outputs import FusionCaptionerModelOutput

TERMS = {"contrastive_loss_weight": 1.0, "matching_loss_weight": 1.0}


def tiny_retriever(**fields) -> FusionCaptionerForImageTextRetrieval:
    model = FusionCaptionerForImageTextRetrieval(tiny_model(**TERMS, **fields).config)
    return model.eval()


@pytest.mark.parametrize("matching_type", [*MATCHINGS])
def test_a_pair_s_score_depends_on_its_text_and_image_alone(matching_type: str) -> None:
    torch.manual_seed(0)
    model, ids = tiny_retriever(matching_type=matching_type, initializer_range=0.3), tokens(3)
    regions = model.get_image_hidden_states(pixels(2))
    states = model.get_text_features(ids).last_hidden_state
    pairs = torch.tensor([[0, 1], [2, 0], [2, 1], [1, 1]])
    together = model.rerank(pairs, states, regions)
    assert together.unique().numel() == len(pairs)
    for pair, expected in zip(pairs.tolist(), together):
        alone = model.rerank(torch.zeros(1, 2, dtype=torch.long), states[[pair[0]]], regions[[pair[1]]])
        torch.testing.assert_close(alone[0], expected)


@pytest.mark.parametrize("matching_type", [*MATCHINGS])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_score_does_not_see_padding(matching_type: str, side: str) -> None:
    model, ids = tiny_retriever(matching_type=matching_type, initializer_range=0.3), tokens(2)
    pad, ones = torch.zeros(2, 3, dtype=torch.long), torch.ones_like(ids)
    order = slice(None, None, -1 if side == "left" else 1)
    padded, mask = (torch.cat(tensors[order], dim=1) for tensors in ((ids, pad), (ones, pad)))
    regions, pairs = model.get_image_hidden_states(pixels(2)), torch.tensor([[0, 1], [1, 0]])
    expected = model.rerank(pairs, model.get_text_features(ids).last_hidden_state, regions)
    found = model.rerank(pairs, model.get_text_features(padded, mask).last_hidden_state, regions, mask)
    torch.testing.assert_close(found, expected)


def test_a_word_is_held_against_the_region_that_it_attends_to() -> None:
    config = tiny_model(matching_type="word_region", **TERMS).config
    matching = WordRegionMatching(config, image_width=4).eval()
    with torch.no_grad():
        matching.word_projection.weight.copy_(torch.eye(config.hidden_size))
        matching.region_projection.weight.copy_(torch.eye(config.hidden_size, 4))
        matching.word_weight.weight.zero_()
        matching.region_weight.weight.zero_()
        directions = torch.eye(4, config.hidden_size)
        # words along 0 and 1; the regions of the first image lie along 0 and 1, of the second along 0, 2 and 3
        texts, images = directions[[0, 1]].unsqueeze(0), torch.eye(4)[torch.tensor([[0, 1, 0, 1], [0, 0, 2, 3]])]

        def similarities() -> list[float]:
            pairs = torch.tensor([0, 0]), torch.tensor([0, 1])
            outputs = FusionCaptionerModelOutput(text_hidden_states=texts, image_hidden_states=images)
            return (matching(*pairs, outputs, None, None) / matching.SCALE + 2 * matching.THRESHOLD).tolist()

        # all words and all regions; half of the words and half of the regions
        assert similarities() == pytest.approx([1 + 1, 0.5 + 0.5], abs=1e-6)
        matching.word_weight.weight[0, 1] = 50.0  # the second word alone counts
        assert similarities() == pytest.approx([1 + 1, 0 + 0.5], abs=1e-6)
        matching.region_weight.weight[0, 0] = 50.0  # the regions along 0 alone count
        assert similarities() == pytest.approx([1 + 1, 0 + 1], abs=1e-6)


def test_word_region_matching_is_trained_and_starts_at_its_scale_where_a_checkpoint_has_none(tmp_path) -> None:
    torch.manual_seed(0)
    model, ids = tiny_model(matching_type="word_region", matching_negatives=2, **TERMS), tokens(6)
    output = model(pixel_values=pixels(3), input_ids=ids, labels=ids)
    output.loss_terms["matching"].backward()
    gradients = {name: parameter.grad.abs().max() for name, parameter in model.alignment.matching.named_parameters()}
    assert len(gradients) == 6 and all(gradient > 0 for gradient in gradients.values())
    tiny_model().save_pretrained(tmp_path)
    loaded = FusionCaptionerForImageTextRetrieval.from_pretrained(tmp_path, matching_type="word_region", **TERMS)
    assert loaded.alignment.matching.log_scale.exp().item() == pytest.approx(WordRegionMatching.SCALE)
    assert loaded.alignment.matching.threshold.item() == pytest.approx(WordRegionMatching.THRESHOLD)

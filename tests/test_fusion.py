"""Each fusion strategy against its formula in bare torch; an image is projected once for all its texts."""

import math

import pytest
import torch
from tiny_models import FUSION_TYPES, randomize, tiny_config

from fusion_captioner.fusion import FUSIONS, Fusion

CONFIG = tiny_config()
HEADS, WIDTH = CONFIG.num_attention_heads, CONFIG.hidden_size
IMAGES, TEXTS, LENGTH, REGIONS = 2, 3, 5, 4


def fusion(fusion_type: str) -> Fusion:
    torch.manual_seed(0)
    built = FUSIONS[fusion_type](CONFIG).eval()
    randomize(built, scale=0.3)
    return built


def inputs(texts: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(IMAGES * texts, LENGTH, WIDTH, generator=generator)
    return text, torch.randn(IMAGES, REGIONS, WIDTH, generator=generator)


def affine(layer: torch.nn.Linear, tensor: torch.Tensor) -> torch.Tensor:
    return tensor @ layer.weight.T + layer.bias


def normalized(norm: torch.nn.LayerNorm, tensor: torch.Tensor) -> torch.Tensor:
    centred = tensor - tensor.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def sum_formula(module, text, regions):
    image = regions.mean(dim=1, keepdim=True)
    return (affine(module.image_projection, image) + affine(module.text_projection, text)).clamp(min=0)


def concat_formula(module, text, regions):
    image = regions.mean(dim=1, keepdim=True).expand_as(text)
    return affine(module.projection, torch.cat((image, text), dim=-1)).clamp(min=0)


def gated_formula(module, text, regions):
    image_value, image_gate = affine(module.image_projection, regions.mean(dim=1, keepdim=True)).split(WIDTH, dim=-1)
    text_value, text_gate = affine(module.text_projection, text).split(WIDTH, dim=-1)
    gate = 1 / (1 + torch.exp(-(image_gate + text_gate)))
    return gate * image_value + (1 - gate) * text_value


def bilinear_formula(module, text, regions):
    image = affine(module.image_projection, regions.mean(dim=1, keepdim=True)).tanh()
    return text + affine(module.output, image * affine(module.text_projection, text).tanh())


def heads_of(module, text, regions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores `(T, heads, L, P)`, contexts `(T, L, D)` and values `(B, P, D)`, one head after the other."""
    size = WIDTH // HEADS
    query = affine(module.query, text)
    key, value = affine(module.key_value, normalized(module.region_norm, regions)).split(WIDTH, dim=-1)
    scores, contexts = [], []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores.append(torch.einsum("tld,tpd->tlp", query[..., part], key[..., part]) / math.sqrt(size))
        contexts.append(scores[-1].softmax(dim=-1) @ value[..., part])
    return torch.stack(scores, dim=1), torch.cat(contexts, dim=-1), value


def attention_formula(module, text, regions):
    _, context, _ = heads_of(module, text, regions)
    return normalized(module.joint_norm, text + affine(module.output, context))


def co_attention_formula(module, text, regions):
    scores, context, value = heads_of(module, text, regions)
    affinities = scores.mean(dim=1)
    reweighted = torch.empty_like(text)
    for step in range(text.shape[1]):
        weights = affinities[:, : step + 1].logsumexp(dim=1).softmax(dim=-1)  # (T, P)
        reweighted[:, step] = torch.einsum("tp,tpd->td", weights, value)
    return normalized(module.joint_norm, text + affine(module.output, torch.cat((context, reweighted), dim=-1)))


FORMULAS = {
    "sum": sum_formula,
    "concat": concat_formula,
    "gated": gated_formula,
    "bilinear": bilinear_formula,
    "attention": attention_formula,
    "co_attention": co_attention_formula,
}


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_the_joint_representation_is_the_formula(fusion_type: str) -> None:
    module = fusion(fusion_type)
    text, regions = inputs()
    joint, _, _ = module(text, *module.project_regions(regions))
    torch.testing.assert_close(joint, FORMULAS[fusion_type](module, text, regions))


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_texts_of_one_image_equal_the_image_repeated(fusion_type: str) -> None:
    module = fusion(fusion_type)
    text, regions = inputs(TEXTS)
    shared, shared_weights, _ = module(text, *module.project_regions(regions), output_attentions=True)
    repeated, repeated_weights, _ = module(
        text, *module.project_regions(regions.repeat_interleave(TEXTS, dim=0)), output_attentions=True
    )
    torch.testing.assert_close(shared, repeated)
    if fusion_type in ("attention", "co_attention"):
        torch.testing.assert_close(shared_weights, repeated_weights)
    # the texts of an image stand together: another image must not do as well
    swapped, _, _ = module(text, *module.project_regions(regions.flip(0)))
    assert (shared - swapped).abs().amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_the_projected_image_has_one_row_an_image(fusion_type: str) -> None:
    _, regions = inputs(TEXTS)
    assert {len(tensor) for tensor in fusion(fusion_type).project_regions(regions)} == {IMAGES}


@pytest.mark.parametrize("fusion_type", ["attention", "co_attention"])
def test_attention_weights_are_shares_of_the_regions(fusion_type: str) -> None:
    module = fusion(fusion_type)
    text, regions = inputs(TEXTS)
    projected = module.project_regions(regions)
    joint, weights, _ = module(text, *projected, output_attentions=True)
    assert weights.shape == (IMAGES * TEXTS, HEADS, LENGTH, REGIONS)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(IMAGES * TEXTS, HEADS, LENGTH))
    scores, _, _ = heads_of(module, text, regions.repeat_interleave(TEXTS, dim=0))
    torch.testing.assert_close(weights, scores.softmax(dim=-1))
    without, none, _ = module(text, *projected)
    assert none is None
    torch.testing.assert_close(without, joint)


@pytest.mark.parametrize("chunks", [(4, 1), (1, 1, 1, 1, 1), (2, 3)])
def test_co_attention_in_pieces_equals_the_whole(chunks: tuple[int, ...]) -> None:
    module = fusion("co_attention")
    text, regions = inputs(TEXTS)
    projected = module.project_regions(regions)
    mask = torch.ones(len(text), LENGTH, dtype=torch.long)
    mask[1, :3] = 0
    whole, _, whole_state = module(text, *projected, attention_mask=mask)
    pieces, state, done = [], None, 0
    for length in chunks:
        part = slice(done, done + length)
        piece, _, state = module(text[:, part], *projected, attention_mask=mask[:, : done + length], state=state)
        pieces.append(piece)
        done += length
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(state, whole_state)


def test_co_attention_does_not_count_padding() -> None:
    module = fusion("co_attention")
    text, regions = inputs()
    projected = module.project_regions(regions)
    padding = torch.full((IMAGES, 2, WIDTH), 9.0)
    mask = torch.tensor([[0, 0] + [1] * LENGTH] * IMAGES)
    padded, _, padded_state = module(torch.cat((padding, text), dim=1), *projected, attention_mask=mask)
    plain, _, state = module(text, *projected)
    torch.testing.assert_close(padded[:, 2:], plain)
    torch.testing.assert_close(padded_state, state)
    unmasked, _, _ = module(torch.cat((padding, text), dim=1), *projected)
    assert (unmasked[:, 2:] - plain).abs().max() > 1e-3

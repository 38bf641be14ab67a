"""The losses against values worked out by hand."""

import math

import pytest
import torch

from fusion_captioner.losses import (
    caption_loss,
    concept_loss,
    hardest_negative_loss,
    info_nce_loss,
    matching_loss,
    modality_critic_loss,
    reconstruction_loss,
    reverse_gradient,
)


def unit_rows(rows: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=1, keepdim=True)


def test_caption_loss_averages_over_the_labelled_words() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [50.0, -50.0]])
    assert caption_loss(logits, torch.tensor([0, 1, -100])).item() == pytest.approx(
        (math.log(4 / 3) + math.log(2)) / 2, abs=1e-6
    )


def test_caption_loss_smooths_towards_the_uniform_distribution() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    logarithms = (logits - logits.exp().sum().log())[0]
    expected = -(0.7 * logarithms[0] + 0.3 * logarithms.mean())
    torch.testing.assert_close(caption_loss(logits, torch.tensor([0]), 0.3), expected)


def test_caption_loss_without_labels_is_zero_and_has_no_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = caption_loss(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_caption_loss_of_half_precision_is_computed_in_single() -> None:
    loss = caption_loss(torch.zeros(1000, 64, dtype=torch.float16), torch.zeros(1000, dtype=torch.long))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(64), abs=1e-5)


def test_info_nce_of_two_pairs() -> None:
    cosine = torch.tensor([[0.8, 0.1], [0.3, 0.6]])  # texts, images
    scale = 2.0
    exp = (scale * cosine).exp()
    text = -(torch.log(exp[0, 0] / exp[0].sum()) + torch.log(exp[1, 1] / exp[1].sum())) / 2
    image = -(torch.log(exp[0, 0] / exp[:, 0].sum()) + torch.log(exp[1, 1] / exp[:, 1].sum())) / 2
    loss = info_nce_loss(torch.eye(2), cosine, torch.tensor(scale), torch.arange(2))
    torch.testing.assert_close(loss, (text + image) / 2)


def test_info_nce_targets_the_mean_over_all_texts_of_an_image() -> None:
    images, texts, owner = unit_rows(3, 0), unit_rows(6, 1), torch.tensor([0, 0, 1, 1, 2, 2])
    scores = 5.0 * texts @ images.T
    text = -sum(scores[t].log_softmax(dim=0)[owner[t]] for t in range(6)) / 6
    image = -sum(scores[:, i].log_softmax(dim=0)[owner == i].mean() for i in range(3)) / 3
    torch.testing.assert_close(info_nce_loss(images, texts, torch.tensor(5.0), owner), (text + image) / 2)


def test_info_nce_vanishes_for_perfect_and_is_large_for_swapped_pairs() -> None:
    images, scale = torch.eye(3), torch.tensor(50.0)
    assert info_nce_loss(images, torch.eye(3), scale, torch.arange(3)).item() < 1e-6
    assert info_nce_loss(images, torch.eye(3), scale, torch.tensor([1, 2, 0])).item() == pytest.approx(50, abs=1e-3)


def test_hardest_negative_of_two_pairs() -> None:
    cosine = torch.tensor([[0.9, 0.8], [0.1, 0.3]])  # texts, images
    # text 0: image 1 is within the margin (0.2 + 0.8 - 0.9), text 1 is not; text 1: text 0 is nearer to image 1
    # (0.2 + 0.8 - 0.3), image 0 is just at the margin
    loss = hardest_negative_loss(torch.eye(2), cosine, 0.2, torch.arange(2))
    assert loss.item() == pytest.approx((0.1 + 0.7) / 2, abs=1e-6)


def test_hardest_negative_never_is_another_text_of_the_same_image() -> None:
    images, texts, owner = unit_rows(3, 0), unit_rows(6, 1), torch.tensor([0, 0, 1, 1, 2, 2])
    cosine = texts @ images.T
    total = 0.0
    for text, image in enumerate(owner.tolist()):
        positive = cosine[text, image]
        wrong_image = max(cosine[text, other] for other in range(3) if other != image)
        wrong_text = max(cosine[other, image] for other in range(6) if owner[other] != image)
        total += max(0.0, 0.4 + wrong_image - positive) + max(0.0, 0.4 + wrong_text - positive)
    torch.testing.assert_close(hardest_negative_loss(images, texts, 0.4, owner), total / 6)


def test_hardest_negative_of_one_image_is_zero_with_finite_gradients() -> None:
    images, texts = unit_rows(1, 0).requires_grad_(), unit_rows(2, 1).requires_grad_()
    loss = hardest_negative_loss(images, texts, 0.2, torch.zeros(2, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert images.grad.isfinite().all()
    assert texts.grad.isfinite().all()


def test_modality_critic_wants_images_positive_and_texts_negative() -> None:
    images, texts = torch.tensor([2.0, 0.0]), torch.tensor([1.0])
    expected = (math.log1p(math.exp(-2)) + math.log(2)) / 2 + math.log1p(math.exp(1))
    assert modality_critic_loss(images, texts).item() == pytest.approx(expected / 2, abs=1e-6)


def test_reconstruction_compares_with_the_standardized_feature() -> None:
    pooled = torch.tensor([[1.0, 3.0], [-2.0, 6.0]], requires_grad=True)
    rebuilt = torch.tensor([[-1.0, 1.0], [0.0, 3.0]], requires_grad=True)
    loss = reconstruction_loss(rebuilt, pooled)
    # both targets are (-1, 1): off by 0, 0, 1 and 2
    assert loss.item() == pytest.approx(5 / 4, abs=1e-4)
    loss.backward()
    assert pooled.grad is None
    assert rebuilt.grad is not None


def test_matching_is_binary_cross_entropy() -> None:
    loss = matching_loss(torch.tensor([1.0, -2.0]), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2, abs=1e-6)


def test_true_pairs_weigh_as_much_as_false_ones_in_matching() -> None:
    logits = torch.tensor([1.0, -2.0, 3.0, 0.5])
    true, false = math.log1p(math.exp(-1)), [math.log1p(math.exp(logit)) for logit in (-2, 3, 0.5)]
    loss = matching_loss(logits, torch.tensor([1, 0, 0, 0]))
    assert loss.item() == pytest.approx((true + sum(false) / 3) / 2, abs=1e-6)
    assert matching_loss(logits[:1], torch.tensor([1])).item() == pytest.approx(true, abs=1e-6)
    assert matching_loss(logits[1:], torch.zeros(3)).item() == pytest.approx(sum(false) / 3, abs=1e-6)


def test_concepts_are_binary_cross_entropy_per_true_concept() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], requires_grad=True)
    true = torch.tensor([[True, False, False], [False, True, False]])
    counted = torch.tensor([[True, True, False], [False, True, True]])
    loss = concept_loss(logits, true, counted)
    by_hand = [math.log1p(math.exp(value)) for value in (-1.0, -2.0, -3.0, -1.0)]
    assert loss.item() == pytest.approx(sum(by_hand) / 2, abs=1e-6)
    loss.backward()
    assert torch.equal(logits.grad != 0, counted)
    logits.grad = None
    nothing = concept_loss(logits, torch.zeros_like(true), torch.zeros_like(true))
    nothing.backward()
    assert nothing.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_gradient_reversal_is_the_identity_with_a_turned_gradient(weight: float) -> None:
    inputs = torch.tensor([1.0, -2.0], requires_grad=True)
    reversed_inputs = reverse_gradient(inputs, weight)
    assert torch.equal(reversed_inputs, inputs)
    (reversed_inputs * torch.tensor([3.0, 4.0])).sum().backward()
    torch.testing.assert_close(inputs.grad, -weight * torch.tensor([3.0, 4.0]))


def test_losses_are_computed_in_single_precision_under_autocast() -> None:
    images, texts, own = unit_rows(8, 0), unit_rows(8, 1), torch.arange(8)
    scale = torch.tensor(100.0)  # which would multiply the rounding of similarities

    def values() -> list[torch.Tensor]:
        return [
            info_nce_loss(images, texts, scale, own),
            hardest_negative_loss(images, texts, 0.2, own),
            matching_loss(texts[:, 0], own % 2),
        ]

    expected = values()
    with torch.autocast("cpu", torch.bfloat16):
        found = values()
    assert [loss.item() for loss in found] == [loss.item() for loss in expected]

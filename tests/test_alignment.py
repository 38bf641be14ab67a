"""The auxiliary loss terms: each can be on or off, an absent one costs nothing, and processes share their
negatives."""

import warnings
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
import torch
from tiny_models import pixels, tiny_model, tokens
from torch import distributed, multiprocessing

from fusion_captioner.alignment import AlignmentLosses
from fusion_captioner.losses import matching_loss, modality_critic_loss, reconstruction_loss
from fusion_captioner.text_encoder import last_token, mean_of_tokens

TERMS = {
    "caption": set(),
    "contrastive": {"logit_scale"},
    "adversarial": {"critic.0.weight", "critic.0.bias", "critic.2.weight", "critic.2.bias"},
    "reconstruction": {"generator.0.weight", "generator.0.bias", "generator.2.weight", "generator.2.bias"},
    "matching": {f"matching.head.{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")},
}


def weights(*terms: str, weight: float = 1.0, **others: float) -> dict[str, float]:
    """Config fields that turn these terms on and all others off."""
    return {f"{term}_loss_weight": weight if term in terms else 0.0 for term in TERMS} | others


@pytest.mark.parametrize(
    "terms",
    [
        ("caption",),
        ("contrastive",),
        ("adversarial",),
        ("reconstruction",),
        ("contrastive", "matching"),
        (*TERMS,),
    ],
)
def test_only_the_terms_that_are_on_are_built_and_returned(terms: tuple[str, ...]) -> None:
    model = tiny_model(**weights(*terms, weight=0.5))
    assert {name for name, _ in model.alignment.named_parameters()} == set().union(*(TERMS[term] for term in terms))
    ids = tokens(4)
    output = model(pixel_values=pixels(), input_ids=ids, labels=ids)
    assert set(output.loss_terms) == set(terms)
    assert all(term.shape == () and term.item() > 0 for term in output.loss_terms.values())
    torch.testing.assert_close(output.loss, 0.5 * torch.stack([*output.loss_terms.values()]).sum())


def test_without_auxiliary_terms_no_embedding_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs):
        raise AssertionError("computed although no term needs it")

    model, ids = tiny_model(**weights("caption")), tokens()
    monkeypatch.setattr(model.model.image_projection, "forward", fail)
    monkeypatch.setattr(model.model.text_projection, "forward", fail)
    monkeypatch.setattr(AlignmentLosses, "forward", fail)
    output = model(pixel_values=pixels(), input_ids=ids, labels=ids)
    assert (output.image_embeds, output.text_embeds) == (None, None)
    aligned = tiny_model(**weights("contrastive"))
    assert aligned(pixel_values=pixels(), input_ids=ids, use_cache=False).image_embeds is None
    with pytest.raises(AssertionError, match="computed"):
        aligned(pixel_values=pixels(), input_ids=ids, labels=ids)


@pytest.mark.parametrize(
    "terms", [("contrastive",), ("adversarial",), ("reconstruction",), ("contrastive", "matching")]
)
def test_every_term_trains_the_text_encoder(terms: tuple[str, ...]) -> None:
    model, ids = tiny_model(**weights(*terms)), tokens(4)
    model(pixel_values=pixels(), input_ids=ids, labels=ids).loss.backward()
    assert model.model.text_encoder.layers.recurrent.weight_ih_l0.grad.abs().max() > 0
    for name, parameter in model.alignment.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_embeddings_have_length_one_and_do_not_see_padding() -> None:
    model, ids = tiny_model(**weights("contrastive")), tokens(4)
    output = model(pixel_values=pixels(), input_ids=ids, labels=ids)
    torch.testing.assert_close(output.image_embeds.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(output.text_embeds.norm(dim=1), torch.ones(4))
    pad, mask = torch.zeros(4, 2, dtype=torch.long), torch.ones_like(ids)
    for padded_ids, padded_mask in (((ids, pad), (mask, pad)), ((pad, ids), (pad, mask))):
        features = model.get_text_features(torch.cat(padded_ids, dim=1), torch.cat(padded_mask, dim=1))
        torch.testing.assert_close(features.pooler_output, output.text_embeds)
    torch.testing.assert_close(model.get_image_features(pixels()).pooler_output, output.image_embeds)


def test_last_token_is_the_last_real_one() -> None:
    states = torch.arange(12.0).view(3, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]])
    assert last_token(states, mask).flatten().tolist() == [1, 7, 10]
    assert last_token(states, None).flatten().tolist() == [3, 7, 11]


def test_the_mean_is_of_real_tokens() -> None:
    states = torch.arange(12.0).view(3, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]])
    assert mean_of_tokens(states, mask).flatten().tolist() == [0.5, 6.5, 9.5]
    assert mean_of_tokens(states, None).flatten().tolist() == [1.5, 5.5, 9.5]


@pytest.mark.parametrize(
    ("encoder", "pooling", "sees_order"),
    [("lstm", "last", True), ("lstm", "mean", True), ("embedding", "mean", False)],
)
def test_a_bag_of_words_has_no_order(encoder: str, pooling: str, sees_order: bool) -> None:
    model, ids = tiny_model(**weights("contrastive"), text_encoder_type=encoder, text_pooling=pooling), tokens(4)
    forwards, backwards = (model.get_text_features(order).pooler_output for order in (ids, ids.flip(1)))
    assert torch.allclose(forwards, backwards, atol=1e-6) != sees_order
    others = model.get_text_features(torch.cat((ids[:, :-1], ids[:, :1]), dim=1)).pooler_output
    assert not torch.allclose(forwards, others, atol=1e-6)
    output = model(pixel_values=pixels(), input_ids=ids, labels=ids)
    torch.testing.assert_close(output.text_embeds, forwards)


def test_reconstruction_rebuilds_the_pooled_features_of_the_text_s_own_image() -> None:
    model, ids = tiny_model(**weights("reconstruction")), tokens(4)
    output = model(pixel_values=pixels(), input_ids=ids, labels=ids)
    pooled = model.get_image_hidden_states(pixels()).mean(dim=1)
    expected = reconstruction_loss(model.alignment.generator(output.text_embeds), pooled[[0, 0, 1, 1]])
    torch.testing.assert_close(output.loss_terms["reconstruction"], expected)


def test_matching_scores_true_pairs_another_image_and_another_text() -> None:
    model, ids = tiny_model(**weights("contrastive", "matching")), tokens(2)
    ids[:, -1], mask = 0, torch.ones_like(ids)
    mask[:, -1] = 0
    output = model(pixel_values=pixels(), input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))

    def scores(texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        fused = model.model(input_ids=texts, attention_mask=mask, pixel_values=images).fused_hidden_states
        return model.alignment.matching.head(fused[:, :-1]).mean(dim=(1, 2))  # without the padding

    # of two images with a text each, the other one is the only negative
    pairs = ((ids, pixels()), (ids, pixels().flip(0)), (ids.flip(0), pixels()))
    expected = matching_loss(torch.cat([scores(*pair) for pair in pairs]), torch.tensor([1, 1, 0, 0, 0, 0]))
    torch.testing.assert_close(output.loss_terms["matching"], expected)


def test_negatives_are_of_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model(**weights("contrastive", "matching")), tokens(6)
    drawn = []
    draw = torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1])
    for _ in range(20):
        model(pixel_values=pixels(3), input_ids=ids, labels=ids)
    own = torch.tensor([0, 0, 1, 1, 2, 2])
    images, texts = torch.cat(drawn[0::2], dim=1), torch.cat(drawn[1::2], dim=1)  # (T, 20) each
    assert (images != own[:, None]).all()
    assert (own[texts] != own[:, None]).all()
    assert all(len(row.unique()) == 2 for row in images)


@pytest.mark.parametrize("wanted", [2, 50])
def test_as_many_negatives_are_drawn_as_asked_for_and_the_batch_has(
    wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny_model(**weights("contrastive", "matching"), matching_negatives=wanted), tokens(8)
    drawn, scored = [], []
    draw, matching = torch.multinomial, model.alignment.matching
    monkeypatch.setattr(torch, "multinomial", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    matching.register_forward_hook(lambda module, given, scores: scored.append(scores))
    output = model(pixel_values=pixels(4), input_ids=ids, labels=ids)
    # of four images three are of others, of eight texts six
    images, texts = (min(wanted, others) for others in (3, 6))
    assert [tuple(rows.shape) for rows in drawn] == [(8, images), (8, texts)]
    assert all(len(row.unique()) == len(row) for rows in drawn for row in rows)
    labels = torch.zeros(8 * (1 + images + texts))
    labels[:8] = 1
    torch.testing.assert_close(output.loss_terms["matching"], matching_loss(scored[0], labels))


def test_matching_of_one_image_has_true_pairs_only() -> None:
    model, ids = tiny_model(**weights("contrastive", "matching")), tokens(2)
    output = model(pixel_values=pixels(1), input_ids=ids, labels=ids)
    fused = model.model(input_ids=ids, pixel_values=pixels(1)).fused_hidden_states
    scores = model.alignment.matching.head(fused).mean(dim=(1, 2))
    torch.testing.assert_close(output.loss_terms["matching"], matching_loss(scores, torch.ones(2)))


def test_every_term_of_a_batch_in_pieces_is_that_of_the_whole() -> None:
    """Pieces are gradient-accumulation steps or processes; `Trainer` tells them the words of all and sums them."""
    model, ids = tiny_model(**weights("caption", "reconstruction")), tokens(4)
    whole = model(pixel_values=pixels(), input_ids=ids, labels=ids).loss_terms
    words = ids[:, 1:].numel()
    pieces = [
        model(pixel_values=image, input_ids=texts, labels=texts, num_items_in_batch=words).loss_terms
        for image, texts in zip(pixels().split(1), ids.split(2))
    ]
    for name, term in whole.items():
        torch.testing.assert_close(sum(piece[name] for piece in pieces), term)


def test_the_critic_learns_and_the_encoders_work_against_it() -> None:
    gradients = {}
    for weight in (0.0, 1.0, 2.0):
        model, ids = tiny_model(**weights("adversarial"), gradient_reversal_weight=weight), tokens(4)
        output = model(pixel_values=pixels(), input_ids=ids, labels=ids)
        output.loss.backward()
        gradients[weight] = model.model.text_projection.weight.grad, model.alignment.critic[0].weight.grad
    plain = modality_critic_loss(
        model.alignment.critic(output.image_embeds).squeeze(-1),
        model.alignment.critic(embeds := output.text_embeds).squeeze(-1),
    )
    torch.testing.assert_close(plain, output.loss_terms["adversarial"])
    assert embeds.requires_grad
    torch.testing.assert_close(gradients[2.0][0], 2 * gradients[1.0][0])
    torch.testing.assert_close(gradients[2.0][1], gradients[0.0][1])
    assert (gradients[0.0][0] == 0).all()
    unreversed = tiny_model(**weights("adversarial"))
    states = unreversed.model(input_ids=tokens(4), pixel_values=pixels())
    modality_critic_loss(
        unreversed.alignment.critic(states.image_embeds).squeeze(-1),
        unreversed.alignment.critic(states.text_embeds).squeeze(-1),
    ).backward()
    torch.testing.assert_close(gradients[1.0][0], -unreversed.model.text_projection.weight.grad)


LOSS_TYPES = ["info_nce", "hinge"]
# how many of four images the first process has; fewer than the other, when it left out one that cannot be decoded
SHARES = [2, 1]


def contrastive_result(loss_type: str, rows: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of these images of a batch of four with two texts each."""
    model = tiny_model(**weights("contrastive"), contrastive_loss_type=loss_type, contrastive_margin=0.5)
    ids = tokens(8).view(4, 2, -1)[rows].flatten(0, 1)
    loss = model(pixel_values=pixels(4)[rows], input_ids=ids, labels=ids).loss_terms["contrastive"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_of_two_processes(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(minutes=10)
    )
    try:
        results = {}
        for loss_type, share in product(LOSS_TYPES, SHARES):
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)
                loss, gradients = contrastive_result(loss_type, (slice(share), slice(share, None))[rank])
            for gradient in gradients.values():
                distributed.all_reduce(gradient)
                gradient /= 2  # as distributed data parallelism averages them
            results[loss_type, share] = loss, gradients
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def second_process(_: int, folder: str) -> None:
    torch.set_num_threads(1)
    one_of_two_processes(1, folder)


@pytest.mark.slow
def test_two_processes_equal_one_on_the_joint_batch(tmp_path: Path) -> None:
    joint = {loss_type: contrastive_result(loss_type, slice(None)) for loss_type in LOSS_TYPES}
    other = multiprocessing.spawn(second_process, args=(str(tmp_path),), nprocs=1, join=False)
    one_of_two_processes(0, str(tmp_path))
    assert other.join()
    processes = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for loss_type, share in product(LOSS_TYPES, SHARES):
        expected_loss, expected_gradients = joint[loss_type]
        half_loss, _ = contrastive_result(loss_type, slice(0, 2))
        assert (expected_loss - half_loss).abs() > 1e-3
        assert expected_gradients["model.text_projection.weight"].abs().max() > 1e-3
        for process in processes:
            loss, gradients = process[loss_type, share]
            torch.testing.assert_close(loss, expected_loss)
            assert gradients.keys() == expected_gradients.keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6, msg=name)

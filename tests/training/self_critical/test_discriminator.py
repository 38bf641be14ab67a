"""The discriminator: that it learns to tell, that padding does not tell it anything, and that it resumes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_captioner import WORDS, tiny_model

from fusion_captioner.training.self_critical.arguments import SelfCriticalArguments
from fusion_captioner.training.self_critical.discriminator import (
    CaptionDiscriminator,
    DiscriminatorReward,
    discriminator_loss,
)
from fusion_captioner.training.self_critical.rewards import REWARDS
from fusion_captioner.training.self_critical.sampled_captions import ReferenceCaptions, SampledCaptions

COLOURS = [WORDS.index(colour) for colour in ("red", "green", "blue")]
BOS, EOS, A, SQUARE = 1, 2, WORDS.index("a"), WORDS.index("square")


def reward(folder: Path, **settings) -> DiscriminatorReward:
    torch.manual_seed(0)
    return DiscriminatorReward({}, tiny_model(), SelfCriticalArguments(output_dir=str(folder), **settings))


def batch(images: int = 6, samples: int = 2) -> tuple[SampledCaptions, ReferenceCaptions]:
    """Images of a colour; "a red square" by people; of the generated captions every other has its words mixed up."""
    kinds = torch.randint(0, 3, (images,))
    kinds[:2] = torch.tensor([0, 1])
    regions = torch.nn.functional.one_hot(kinds, 12).float().unsqueeze(1) + 0.1 * torch.randn(images, 4, 12)
    ids = [f"colour {int(kind)}" for kind in kinds]
    people = torch.tensor([[BOS, A, COLOURS[kind], SQUARE, EOS] for kind in kinds])
    generated = torch.tensor(
        [[BOS, SQUARE, COLOURS[(kind + n) % 3], A, EOS] for kind in kinds for n in range(samples)]
    )
    texts = [""] * len(generated)
    sampled_ids = [image_id for image_id in ids for _ in range(samples)]
    return (
        SampledCaptions(sampled_ids, texts, [True] * len(texts), generated, torch.ones_like(generated), regions),
        ReferenceCaptions(ids, people, torch.ones_like(people)),
    )


def test_it_learns_to_tell_peoples_captions_of_the_image(tmp_path: Path) -> None:
    discriminator = reward(tmp_path)
    history = [discriminator.learn(*batch()) for _ in range(60)]
    assert history[0]["discriminator_loss"] == pytest.approx(np.log(2), abs=0.1)
    assert np.mean([row["discriminator_accuracy"] for row in history[:3]]) < 0.8
    assert np.mean([row["discriminator_accuracy"] for row in history[-5:]]) > 0.95
    samples, people = batch()
    human = SampledCaptions(
        people.image_ids, [], [], people.input_ids, people.attention_mask, samples.image_hidden_states
    )
    others = SampledCaptions(
        people.image_ids,
        [],
        [],
        people.input_ids,
        people.attention_mask,
        samples.image_hidden_states[[1, 0, 2, 3, 4, 5]],
    )
    assert discriminator(human).min() > 0.8
    assert discriminator(samples).max() < 0.2
    assert discriminator(others)[:2].max() < 0.2


def test_the_reward_is_a_probability(tmp_path: Path) -> None:
    discriminator = reward(tmp_path)
    samples, _ = batch()
    samples.image_hidden_states *= 1e4
    with torch.no_grad():
        discriminator.discriminator.text_projection.weight.mul_(1e3)
    scores = discriminator(samples)
    assert scores.shape == (12,) and scores.dtype == np.float64
    assert ((scores >= 0) & (scores <= 1)).all() and scores.std() > 0.1


def test_padding_on_either_side_tells_nothing() -> None:
    torch.manual_seed(0)
    model = CaptionDiscriminator(len(WORDS), 12)
    ids = torch.tensor([[BOS, A, 5, SQUARE, EOS]])
    regions = torch.randn(1, 4, 12)
    alone = model(regions, ids, torch.ones_like(ids))
    for left, right in ((0, 3), (2, 0), (1, 2)):
        padded = torch.nn.functional.pad(ids, (left, right), value=0)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right), value=0)
        torch.testing.assert_close(model(regions, padded, mask), alone)


def test_true_and_false_weigh_alike() -> None:
    people, generated, others = torch.tensor([2.0, 2.0]), torch.tensor([1.0]), torch.tensor([-3.0, -3.0, -3.0])
    softplus = torch.nn.functional.softplus
    loss, accuracy = discriminator_loss(people, generated, others)
    expected = softplus(torch.tensor(-2.0)) + (softplus(torch.tensor(1.0)) + softplus(torch.tensor(-3.0))) / 2
    torch.testing.assert_close(loss, expected / 2)
    assert accuracy == pytest.approx((1 + (0 + 1) / 2) / 2)
    alone, _ = discriminator_loss(people, generated, others[:0])
    torch.testing.assert_close(alone, (softplus(torch.tensor(-2.0)) + softplus(torch.tensor(1.0))) / 2)


def test_an_image_that_a_batch_holds_twice_is_no_other_image(tmp_path: Path) -> None:
    samples, people = batch(images=2)
    expected = reward(tmp_path)
    logits = expected.discriminator(samples.image_hidden_states, people.input_ids, people.attention_mask)
    generated = expected.discriminator(samples.image_hidden_states, samples.input_ids, samples.attention_mask)
    people.image_ids = ["same", "same"]
    learned = reward(tmp_path).learn(samples, people)
    assert learned["discriminator_loss"] == pytest.approx(
        float(discriminator_loss(logits, generated, logits[:0])[0]), rel=1e-5
    )


def test_it_resumes_with_its_optimiser(tmp_path: Path) -> None:
    batches = [batch() for _ in range(6)]
    unbroken = reward(tmp_path)
    for number in range(3):
        unbroken.learn(*batches[number])
    unbroken.save(tmp_path)
    resumed = reward(tmp_path)
    resumed.resume(tmp_path)
    for number in range(3, 6):
        losses = []
        for discriminator in (unbroken, resumed):
            torch.manual_seed(number)
            losses.append(discriminator.learn(*batches[number])["discriminator_loss"])
        assert losses[0] == losses[1]


def test_a_checkpoint_without_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"discriminator\.safetensors is missing.*leave it out of `rewards`"):
        reward(tmp_path).resume(tmp_path)


def test_it_is_a_reward_with_a_learning_rate(tmp_path: Path) -> None:
    assert REWARDS["discriminator"] is DiscriminatorReward
    assert reward(tmp_path, discriminator_learning_rate=0.5).optimizer.param_groups[0]["lr"] == 0.5

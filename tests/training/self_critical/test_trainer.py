"""Self-critical training: its formulas, that it learns what is rewarded, and that it resumes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_captioner import caption_rows, tiny_model, tiny_processor
from transformers import TrainerCallback

from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import SelfCriticalCollator
from fusion_captioner.training.arguments import read_run_arguments
from fusion_captioner.training.run_folder import newest_complete_checkpoint
from fusion_captioner.training.self_critical import trainer as self_critical
from fusion_captioner.training.self_critical.arguments import SelfCriticalArguments
from fusion_captioner.training.self_critical.sampled_captions import Reward, SampledCaptions
from fusion_captioner.training.self_critical.trainer import (
    SelfCriticalTrainer,
    leave_one_out_advantages,
    policy_loss,
)


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def build(folder: Path, data: Path, callbacks=(), **settings) -> SelfCriticalTrainer:
    torch.manual_seed(0)
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "disable_tqdm": True,
        "generation_max_new_tokens": 6,
    }
    return SelfCriticalTrainer(
        model=tiny_model(),
        args=SelfCriticalArguments(**(defaults | settings)),
        data_collator=SelfCriticalCollator(tiny_processor()),
        train_dataset=CaptionDataset(caption_rows(data / "train", 8), 1, seed=0),
        eval_dataset=CaptionDataset(caption_rows(data / "val", 3, first_seed=50), 1, seed=0),
        processing_class=tiny_processor(),
        callbacks=list(callbacks),
    )


class RewardOfRed(Reward):
    """The share of the words that are "red"."""

    def __init__(self, references, model, settings, tokenizer) -> None:
        self.model = model

    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        return np.array([words.count("red") / max(1, len(words)) for words in map(str.split, samples.texts)])


class RewardOfDifferentWords(RewardOfRed):
    """The share of the words that are the first of their kind; unlike "red", any search finds better and worse."""

    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        return np.array([len(set(words)) / max(1, len(words)) for words in map(str.split, samples.texts)])


@pytest.fixture
def red(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setitem(self_critical.REWARDS, "red", RewardOfRed)
    return {"red": 1.0}


def logged(trainer: SelfCriticalTrainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def test_the_baseline_is_the_mean_of_the_other_samples() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(leave_one_out_advantages(rewards), expected)


def test_the_policy_loss_weighs_log_probabilities_by_their_captions_advantage() -> None:
    logits, tokens = torch.randn(3, 9), torch.tensor([4, 0, 8])
    advantages = torch.tensor([2.0, 2.0, -1.0])
    logps = [logits[row].log_softmax(0)[token] for row, token in enumerate(tokens)]
    expected = -sum(advantage * logp for advantage, logp in zip(advantages, logps)) / 3
    torch.testing.assert_close(policy_loss(logits, tokens, advantages), expected)


def test_the_gradient_is_of_the_tokens_that_were_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probability of each sampled token, EOS included, from the logits of the whole sequence."""
    trainer = build(tmp_path, tmp_path)
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    seen: dict[str, torch.Tensor] = {}
    sample = trainer._sample
    monkeypatch.setattr(trainer, "_sample", lambda *given: seen.setdefault("drawn", sample(*given)))
    advantages = torch.randn(4 * 5)
    monkeypatch.setattr(trainer, "_advantages", lambda samples, people: advantages)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    samples, sampled = seen["drawn"]
    logits = trainer.model(
        input_ids=samples.input_ids,
        attention_mask=samples.attention_mask,
        image_hidden_states=samples.image_hidden_states,
    ).logits
    logps = logits.log_softmax(-1)[:, :-1].gather(-1, samples.input_ids[:, 1:, None]).squeeze(-1)
    expected = -(advantages[:, None] * logps)[sampled[:, 1:]].mean()
    torch.testing.assert_close(loss, expected)


def test_samples_and_gradient_see_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path, tmp_path)
    trainer.model.model.image_dropout.probability = 0.5
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    seen: dict[str, torch.Tensor] = {}
    sample = trainer._sample
    monkeypatch.setattr(trainer, "_sample", lambda *given: seen.setdefault("drawn", sample(*given)))
    advantages = torch.randn(4 * 5)
    monkeypatch.setattr(trainer, "_advantages", lambda samples, people: advantages)
    trainer.current_gradient_accumulation_steps = 1
    whole = trainer.model.get_image_hidden_states(inputs["pixel_values"]).detach()
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    samples, sampled = seen["drawn"]
    hidden = (samples.image_hidden_states == 0).all(dim=1)
    assert 0.3 < hidden.float().mean() < 0.7
    torch.testing.assert_close(samples.image_hidden_states, torch.where(hidden[:, None], 0.0, 2 * whole))
    logits = trainer.model.eval()(
        input_ids=samples.input_ids,
        attention_mask=samples.attention_mask,
        image_hidden_states=samples.image_hidden_states,
    ).logits
    logps = logits.log_softmax(-1)[:, :-1].gather(-1, samples.input_ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(loss, -(advantages[:, None] * logps)[sampled[:, 1:]].mean())


@pytest.mark.slow
def test_what_is_rewarded_becomes_more_frequent(tmp_path: Path, red: dict[str, float]) -> None:
    trainer = build(tmp_path, tmp_path, rewards=red, num_train_epochs=30, seed=1)
    trainer.train()
    rewards = logged(trainer, "reward")
    assert np.mean(rewards[:5]) < 0.3 and np.mean(rewards[-5:]) > 0.8
    assert logged(trainer, "unique_samples")[-1] < logged(trainer, "unique_samples")[0]


def test_the_log_tells_what_samples_earned_and_how_they_look(tmp_path: Path) -> None:
    trainer = build(tmp_path, tmp_path, rewards={"CIDEr": 1.0, "BLEU-4": 0.5}, cross_entropy_weight=0.2)
    trainer.train()
    first = next(row for row in trainer.state.log_history if "reward" in row)
    names = [
        "reward_CIDEr",
        "reward_BLEU-4",
        "baseline",
        "advantage_std",
        "sample_length",
        "unique_samples",
        "dangling_endings",
    ]
    assert all(name in first for name in [*names, "loss_policy", "loss_caption"])
    assert first["reward"] == pytest.approx(first["reward_CIDEr"] + 0.5 * first["reward_BLEU-4"], abs=1e-3)
    assert first["baseline"] == pytest.approx(first["reward"], abs=1e-3)
    assert first["loss"] == pytest.approx(0.8 * first["loss_policy"] + 0.2 * first["loss_caption"], abs=2e-3)


def test_end_of_sentence_is_sampled_and_what_follows_is_not(tmp_path: Path) -> None:
    trainer = build(tmp_path, tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    regions = trainer.model.get_image_hidden_states(batch["pixel_values"])
    samples, sampled = trainer._sample(trainer.model, regions, batch["prompts"], batch["image_ids"])
    assert samples.input_ids.shape == sampled.shape and len(sampled) == 4 * 5
    assert trainer.model.training
    end = trainer.processing_class.eos_token_id
    assert any(samples.ended) and not all(samples.ended)
    for row, mask, ended in zip(samples.input_ids, sampled, samples.ended):
        words = row[mask].tolist()
        assert not mask[0] and (words.count(end), words[-1] == end) == ((1, True) if ended else (0, False))


def test_beams_are_the_captions_that_beam_search_finds(tmp_path: Path) -> None:
    trainer = build(tmp_path, tmp_path, candidates="beams", samples_per_image=3, generation_length_penalty=0.5)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    regions = trainer.model.get_image_hidden_states(batch["pixel_values"])
    samples, sampled = trainer._sample(trainer.model, regions, batch["prompts"], batch["image_ids"])
    expected = trainer.model.eval().generate(
        **batch["prompts"],
        image_hidden_states=regions,
        num_beams=3,
        num_return_sequences=3,
        length_penalty=0.5,
        max_new_tokens=6,
    )
    torch.testing.assert_close(samples.input_ids, expected)
    assert samples.image_ids == [image_id for image_id in batch["image_ids"] for _ in range(3)]
    rows = [tuple(row[mask].tolist()) for row, mask in zip(samples.input_ids, sampled)]
    assert all(len(set(rows[first : first + 3])) == 3 for first in range(0, 12, 3))


def test_a_step_makes_the_beams_of_high_reward_likelier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(self_critical.REWARDS, "different", RewardOfDifferentWords)
    trainer = build(tmp_path, tmp_path, rewards={"different": 1.0}, candidates="beams")
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    regions = trainer.model.get_image_hidden_states(batch["pixel_values"]).detach()
    beams, searched = trainer._sample(trainer.model, regions, batch["prompts"], batch["image_ids"])
    rewards = torch.from_numpy(trainer.rewards["different"](beams)).view(4, 5)
    assert (rewards.std(dim=1) > 0).any()
    advantages = (rewards - rewards.mean(dim=1, keepdim=True)).flatten()

    @torch.no_grad()
    def weighted_log_probability() -> float:
        logits = trainer.model.eval()(
            input_ids=beams.input_ids, attention_mask=beams.attention_mask, image_hidden_states=regions
        ).logits
        logps = logits.log_softmax(-1)[:, :-1].gather(-1, beams.input_ids[:, 1:, None]).squeeze(-1)
        return float((advantages[:, None] * logps)[searched[:, 1:]].sum())

    before = weighted_log_probability()
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model.train(), {**batch, "image_hidden_states": regions}).backward()
    optimizer.step()
    assert weighted_log_probability() > before + 0.1


def test_every_image_is_encoded_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path, tmp_path, cross_entropy_weight=0.5)
    calls: list[int] = []
    backbone = trainer.model.model.image_encoder.backbone
    backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    trainer.train()
    assert calls == [4, 4]


@pytest.mark.slow
def test_a_discriminator_is_trained_beside_and_told_of(tmp_path: Path) -> None:
    trainer = build(tmp_path, tmp_path, rewards={"discriminator": 1.0}, num_train_epochs=8)
    trainer.train()
    rewards, losses = logged(trainer, "reward_discriminator"), logged(trainer, "discriminator_loss")
    assert rewards == logged(trainer, "reward") and all(0 <= reward <= 1 for reward in rewards)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert logged(trainer, "discriminator_accuracy")[-1] > 0.6
    assert not list(tmp_path.glob("**/discriminator*"))


def test_bfloat16_samples_and_trains_every_weight(tmp_path: Path) -> None:
    trainer = build(tmp_path, tmp_path, bf16=True, rewards={"discriminator": 1.0}, candidates="beams")
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    types: list[tuple[bool, torch.dtype]] = []
    trainer.model.lm_head.register_forward_hook(
        lambda layer, inputs, output: types.append((torch.is_grad_enabled(), output.dtype))
    )
    projection = trainer.rewards["discriminator"].discriminator.text_projection
    own: set[torch.dtype] = set()
    projection.register_forward_hook(lambda layer, inputs, output: own.add(output.dtype))
    trainer.train()
    assert set(types) == {(True, torch.bfloat16), (False, torch.bfloat16)}  # of the gradient, of sampling
    assert own == {torch.float32}  # the reward has an optimiser of its own
    weights = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    same = {name for name, weight in weights.items() if torch.equal(weight, before[name])}
    assert same <= {"model.image_projection.weight", "model.text_projection.weight"}  # no loss reads them


@pytest.mark.parametrize(
    ("rewards", "bf16"),
    [({"CIDEr": 1.0}, False), ({"CIDEr": 1.0}, True), ({"CIDEr": 1.0, "discriminator": 0.5}, False)],
)
@pytest.mark.slow
def test_a_resumed_run_has_the_rewards_of_an_unbroken_one(
    tmp_path: Path, rewards: dict[str, float], bf16: bool
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3, "rewards": rewards, "bf16": bf16}
    whole = build(tmp_path / "whole", tmp_path, **settings)
    whole.train()
    broken = build(tmp_path / "broken", tmp_path, callbacks=[Stop(3)], **settings)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = build(tmp_path / "broken", tmp_path, **settings)
    resumed.train(resume_from_checkpoint=newest_complete_checkpoint(tmp_path / "broken"))
    assert logged(resumed, "reward") == logged(whole, "reward")
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert logged(resumed, "discriminator_loss") == logged(whole, "discriminator_loss")


def test_the_stage_is_chosen_in_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {source: photos}\ntraining: {stage: self_critical, rewards: {BLEU-4: 2.0}}\n")
    training = read_run_arguments(recipe, ["--training.samples_per_image", "3"]).training
    assert isinstance(training, SelfCriticalArguments)
    assert (training.rewards, training.samples_per_image) == ({"BLEU-4": 2.0}, 3)
    with pytest.raises(ValueError, match=r"`training\.stage`"):
        read_run_arguments(recipe, ["--training.stage", "pretraining"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rewards": {"SPICE": 1.0}}, ["`rewards`", "SPICE", "CIDEr"]),
        ({"rewards": {}}, ["`rewards`"]),
        ({"samples_per_image": 1}, ["`samples_per_image`", "2"]),
        ({"candidates": "greedy"}, ["`candidates`", "samples", "beams"]),
        ({"sampling_temperature": 0}, ["`sampling_temperature`"]),
        ({"cross_entropy_weight": 1}, ["`cross_entropy_weight`"]),
        ({"document_frequencies": "texts.gz", "rewards": {"BLEU-4": 1.0}}, ["`document_frequencies`", "CIDEr"]),
        ({"discriminator_learning_rate": 0}, ["`discriminator_learning_rate`"]),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, settings: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        SelfCriticalArguments(output_dir=str(tmp_path), **settings)
    assert all(word in str(caught.value) for word in words)


def test_evaluation_is_that_of_every_captioner(tmp_path: Path) -> None:
    metrics = build(tmp_path, tmp_path).evaluate()
    assert {"eval_loss", "eval_CIDEr", "eval_BLEU-4"} <= set(metrics)

"""
Self-critical sequence training (Rennie et al., 2017): the captioner samples captions and learns from their rewards.

B: images, n: samples per image, N = B·n, L: tokens, M: sampled tokens of all captions, V: vocabulary
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fusion_captioner.metrics.diversity import caption_diversity
from fusion_captioner.metrics.tokenization import find_tokenizer
from fusion_captioner.training.self_critical.arguments import SelfCriticalArguments
from fusion_captioner.training.self_critical.drawn_captions import draw_captions
from fusion_captioner.training.self_critical.rewards import REWARDS, language_of, reward_weights
from fusion_captioner.training.self_critical.sampled_captions import ImageKey, ReferenceCaptions, SampledCaptions
from fusion_captioner.training.trainer import FusionCaptionerTrainer


def leave_one_out_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """
    Each sample's reward minus the mean reward of the image's other samples (Luo, 2020, eq. 4); no greedy caption is
    needed as a baseline.

    Args:
        rewards (`torch.FloatTensor` of shape `(B, n)`).

    Returns:
        `(B, n)`; every row sums to 0.
    """
    samples = rewards.shape[1]
    return (rewards - rewards.mean(dim=1, keepdim=True)) * samples / (samples - 1)


def policy_loss(logits: torch.Tensor, tokens: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """
    REINFORCE (Williams, 1992) with a baseline: minus advantage times log-probability, averaged over sampled tokens.

    Args:
        logits (`torch.FloatTensor` of shape `(M, V)`): the logits that the sampled tokens were drawn from.
        tokens (`torch.LongTensor` of shape `(M,)`): the sampled tokens, including EOS.
        advantages (`torch.FloatTensor` of shape `(M,)`): the advantage of each token's caption.
    """
    return (advantages * F.cross_entropy(logits.float(), tokens, reduction="none")).mean()


def reference_captions(rows: Any) -> dict[ImageKey, list[str]]:
    """All captions of the images; with several languages those of each language apart."""
    if "languages" not in rows.column_names:
        return dict(zip(rows["image_id"], rows["captions"], strict=True))
    references: dict[ImageKey, list[str]] = {}
    for image_id, captions, languages in zip(rows["image_id"], rows["captions"], rows["languages"], strict=True):
        for caption, language in zip(captions, languages, strict=True):
            references.setdefault((language, image_id), []).append(caption)
    return references


class SelfCriticalTrainer(FusionCaptionerTrainer):
    """
    `FusionCaptionerTrainer` that maximises the expected reward of sampled captions.

    Each step encodes every image once, samples all captions side by side, rewards them, and runs the model once
    over all of them for the gradient. With `image_dropout`, sampling and gradient see the same hidden features, so
    that the model has to describe an image that it has memorised without them. References are all captions of
    `train_dataset`, and document frequencies are computed from them. The log has the loss, each reward, the baseline,
    the standard deviation of the advantages, the samples' length, their rates of unique captions and of dangling
    endings, and the values that trained rewards report.

    Args:
        args (`SelfCriticalArguments`).
        data_collator (`SelfCriticalCollator`).
        The rest as for `FusionCaptionerTrainer`.
    """

    args: SelfCriticalArguments

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        rows = self.train_dataset.rows  # type: ignore[union-attr]
        references = reference_captions(rows)
        self.tokenizer = find_tokenizer(self.metric_tokenizer)
        self.rewards = {
            name: REWARDS[name](references, self.model, self.args, self.tokenizer) for name in self.args.rewards
        }
        self._weights = reward_weights(self.args.rewards, {language_of(image) for image in references})
        self._sampled: dict[str, list[float]] = defaultdict(list)

    def _prepare_inputs(self, inputs):
        names = {name: inputs[name] for name in ("image_ids", "languages") if name in inputs}
        return {**super()._prepare_inputs(inputs), **names}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        image_ids, prompts = inputs.pop("image_ids"), inputs.pop("prompts")
        if (languages := inputs.pop("languages", None)) is not None:
            image_ids = list(zip(languages, image_ids, strict=True))
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        captioner = self.accelerator.unwrap_model(model, keep_torch_compile=False)  # texts grow with each token
        regions = inputs.get("image_hidden_states")
        if regions is None:
            regions = captioner.get_image_hidden_states(inputs.pop("pixel_values"))
        hide_features = captioner.model.image_dropout
        regions = hide_features(regions)
        samples, sampled = self._sample(captioner, regions.detach(), prompts, image_ids)
        hide_features.eval()  # the features that were hidden from the samples stay hidden, and no others
        references = ReferenceCaptions(image_ids, inputs["input_ids"], inputs["attention_mask"])
        with torch.autocast(regions.device.type, enabled=False):  # a reward that learns has an optimiser of its own
            advantages = self._advantages(samples, references).to(regions.device)
        logits = model(
            input_ids=samples.input_ids,
            attention_mask=samples.attention_mask,
            image_hidden_states=regions,
            # the logits of a token are at the position before it; the first token is never a sample
            logits_to_keep=sampled.roll(-1, dims=1),
            return_dict=True,
        ).logits
        loss = policy_loss(logits, samples.input_ids[sampled], advantages.repeat_interleave(sampled.sum(dim=1)))
        self._count_terms({"policy": loss}, 1 / self.current_gradient_accumulation_steps)
        loss = loss / self.current_gradient_accumulation_steps
        if self.args.cross_entropy_weight:
            weight = self.args.cross_entropy_weight
            captions = {**inputs, "image_hidden_states": regions}
            captioning = super().compute_loss(model, captions, num_items_in_batch=num_items_in_batch)
            loss = (1 - weight) * loss + weight * captioning
        return loss

    @torch.no_grad()
    def _sample(
        self, captioner: Any, regions: torch.Tensor, prompts: Mapping[str, torch.Tensor], image_ids: Sequence[ImageKey]
    ) -> tuple[SampledCaptions, torch.Tensor]:
        """Sampled captions, and a mask `(N, L)` that is true at the tokens that were sampled, including EOS."""
        count, longest = self.args.samples_per_image, self.args.generation_max_new_tokens
        captioner.eval()
        if self.args.candidates == "beams":
            sequences = captioner.generate(
                **prompts,
                image_hidden_states=regions,
                do_sample=False,
                num_beams=count,
                num_return_sequences=count,
                length_penalty=self.args.generation_length_penalty,
                max_new_tokens=longest,
            )
        else:
            ends = self.processing_class.eos_token_id
            sequences = draw_captions(
                captioner, regions, prompts, count, longest, ends, self.args.sampling_temperature
            )
        captioner.train()
        width = prompts["input_ids"].shape[1]
        words = sequences[:, width:]
        is_end = words == self.processing_class.eos_token_id
        sampled = is_end.cumsum(dim=1) - is_end.long() == 0  # up to and including the first EOS
        prompt_mask = prompts["attention_mask"].repeat_interleave(count, dim=0)
        samples = SampledCaptions(
            image_ids=[image_id for image_id in image_ids for _ in range(count)],
            texts=self.processing_class.batch_decode(words, skip_special_tokens=True),
            ended=is_end.any(dim=1).tolist(),
            input_ids=sequences,
            attention_mask=torch.cat((prompt_mask, sampled.long()), dim=1),
            image_hidden_states=regions,
            tokenizer=self.tokenizer,
        )
        return samples, torch.cat((torch.zeros_like(prompt_mask, dtype=torch.bool), sampled), dim=1)

    def _advantages(self, samples: SampledCaptions, references: ReferenceCaptions) -> torch.Tensor:
        """(N,) float32. Keeps the rewards for the log, and trains the rewards that learn."""
        values_by_reward = {name: reward(samples) for name, reward in self.rewards.items()}
        learned = [reward.learn(samples, references) for reward in self.rewards.values()]
        total = np.zeros(len(samples.texts))
        for name, values in values_by_reward.items():
            total += np.array([self._weights[name][language_of(image)] for image in samples.image_ids]) * values
        rewards = torch.from_numpy(total).float().view(-1, self.args.samples_per_image)
        advantages = leave_one_out_advantages(rewards)
        diversity = caption_diversity(samples.texts, self.tokenizer)
        logged = {f"reward_{name}": values.mean() for name, values in values_by_reward.items()} | {
            "reward": rewards.mean(),
            "baseline": (rewards - advantages).mean(),
            "advantage_std": advantages.std(),
            "sample_length": diversity["mean_length"],
            "unique_samples": diversity["unique_captions"],
            "dangling_endings": diversity["dangling_endings"],
        }
        for terms in (logged, *learned):
            for name, value in terms.items():
                self._sampled[name].append(float(value))
        return advantages.flatten()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._sampled:
            for name, values in self._sampled.items():
                mean = self.accelerator.gather(torch.tensor(np.mean(values), device=self.args.device)).mean()
                logs[name] = round(float(mean), 4)
            self._sampled.clear()
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial) -> None:
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            for reward in self.rewards.values():
                reward.save(folder)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for reward in self.rewards.values():
            reward.resume(Path(resume_from_checkpoint))

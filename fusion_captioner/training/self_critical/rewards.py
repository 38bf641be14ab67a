"""Rewards of sampled captions in self-critical training: one class per reward, and a closed dict of them."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion_captioner.data.references import read_corpus
from fusion_captioner.metrics.bleu import sentence_bleu
from fusion_captioner.metrics.cider import CiderD, DocumentFrequencies
from fusion_captioner.metrics.tokenization import Tokenizer, tokenize_caption
from fusion_captioner.training.self_critical.discriminator import DiscriminatorReward
from fusion_captioner.training.self_critical.sampled_captions import END, ImageKey, Reward, SampledCaptions


def _reference_tokens(references: Mapping[Any, Sequence[str]], tokenizer: Tokenizer) -> list[list[list[Hashable]]]:
    return [[[*tokenizer(caption), END] for caption in captions] for captions in references.values()]


class CiderReward(Reward):
    """CIDEr-D with the document frequencies of the training set (Rennie et al., 2017), each language with its own; or
    with those of the corpora that `document_frequencies` names."""

    def __init__(self, references, model, settings, tokenizer=tokenize_caption) -> None:
        groups: dict[str, dict] = {}
        for image, captions in references.items():
            groups.setdefault(language_of(image), {})[image] = captions
        corpora = _corpora(settings.document_frequencies, groups)
        self._scorers = {
            language: CiderD(
                _reference_tokens(group, tokenizer),
                _frequencies(corpora[language], tokenizer) if language in corpora else None,
                tokenizer=None,
            )
            for language, group in groups.items()
        }
        self._index = {image: index for group in groups.values() for index, image in enumerate(group)}

    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        tokens = samples.tokens()
        rewards = np.zeros(len(tokens))
        for language, scorer in self._scorers.items():
            images = {row: image for row, image in enumerate(samples.image_ids) if language_of(image) == language}
            batch = list(dict.fromkeys(images.values()))  # in an order that every run has
            pairs = [
                (row, self._index[other]) for row, image in images.items() for other in self._others(image, batch)
            ]
            if pairs:
                rows, others = map(list, zip(*pairs, strict=True))
                scores = scorer.score([tokens[row] for row in rows], others)
                np.add.at(rewards, rows, scores / np.bincount(rows)[rows])
        return rewards

    def _others(self, image: ImageKey, batch: Sequence[ImageKey]) -> Sequence[ImageKey]:
        """The images whose references a caption of `image` is scored by; its reward is the mean."""
        return [image]


class CiderBetweenReward(CiderReward):
    """
    CIDErBtw (Wang et al., 2020): the mean CIDEr-D of the caption against the references of the batch's other images in
    its language, 0 where there is none.

    With a negative weight a caption that would suit other images as well earns less.
    """

    def _others(self, image: ImageKey, batch: Sequence[ImageKey]) -> Sequence[ImageKey]:
        return [other for other in batch if other != image]


def _corpora(named: str | dict[str, str] | None, languages: Collection[str]) -> dict[str, str]:
    """Language → the corpus that `document_frequencies` names for it."""
    if isinstance(named, str) and len(languages) == 1:
        return dict.fromkeys(languages, named)
    corpora = {"": named} if isinstance(named, str) else named or {}
    if not set(corpora) <= set(languages):
        choices = ", ".join(languages)
        raise ValueError(
            f"`document_frequencies` ({named}) must be "
            + (f"sources by language, of {choices}." if choices else "one source: the data has no languages.")
        )
    return corpora


def _frequencies(source: str, tokenizer: Tokenizer) -> DocumentFrequencies:
    tokens = _reference_tokens(read_corpus(source), tokenizer)
    return DocumentFrequencies.from_references(tokens, Path(source).name, tokenizer=None)


def reward_weights(
    rewards: Mapping[str, float | Mapping[str, float]], languages: Collection[str]
) -> dict[str, dict[str, float]]:
    """
    Args:
        rewards: of each reward its weight, or its weights by language; languages that are not named have the weight 0.
        languages: of the data, as [`language_of`] gives them.

    Returns:
        reward → language → weight.

    Raises:
        ValueError: weights by language name another language.
    """
    weights = {}
    for name, weight in rewards.items():
        by_language = weight if isinstance(weight, Mapping) else dict.fromkeys(languages, weight)
        if not set(by_language) <= set(languages):
            choices = ", ".join(sorted(set(languages) - {""})) or "none: its data has one language"
            raise ValueError(f"`rewards` ({name}: {weight}) must name languages of the data, which has {choices}.")
        weights[name] = {language: by_language.get(language, 0.0) for language in languages}
    return weights


def language_of(image: ImageKey) -> str:
    """Empty where the data has one language."""
    return "" if isinstance(image, str) else image[0]


class BleuReward(Reward):
    """BLEU-4 of the single caption, smoothed so that a caption without a common 4-gram is still rewarded for shorter
    n-grams (Lin & Och, 2004)."""

    def __init__(self, references, model, settings, tokenizer=tokenize_caption) -> None:
        self._references = dict(zip(references, _reference_tokens(references, tokenizer), strict=True))

    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        return sentence_bleu(samples.tokens(), [self._references[image_id] for image_id in samples.image_ids])


class MatchingReward(Reward):
    """Probability, by the model's own matching head, that the caption belongs to the image.

    Raises:
        ValueError: the model was trained without the matching loss, and so has no such head.
    """

    def __init__(self, references, model, settings, tokenizer=tokenize_caption) -> None:
        if not model.config.matching_loss_weight:
            raise ValueError(
                "the reward `matching` needs a model with `matching_loss_weight` above 0; train with that loss first, "
                "or remove the reward."
            )
        self._model = model

    @torch.no_grad()
    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        scores = self._model.get_matching_scores(
            samples.input_ids, samples.attention_mask, image_hidden_states=samples.image_hidden_states
        )
        return scores.double().cpu().numpy()


REWARDS: dict[str, type[Reward]] = {
    "CIDEr": CiderReward,
    "CIDEr-between": CiderBetweenReward,
    "BLEU-4": BleuReward,
    "matching": MatchingReward,
    "discriminator": DiscriminatorReward,
}

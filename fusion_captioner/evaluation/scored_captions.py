"""Captions with their scores, for one or several settings, however they were made. torch is not needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion_captioner.metrics.caption_scores import DEFAULT_METRICS, score_captions
from fusion_captioner.metrics.diversity import caption_diversity


@dataclass(frozen=True)
class SplitScores:
    """
    Args:
        settings: numbers by the name of the setting, `"greedy"` or `"beam 3"`.
        lines: every caption of every setting, with its image, beam size and CIDEr-D.
        captions: captions of the last setting by `image_id`.
        cider (`np.ndarray` of shape `(images,)`): their CIDEr-D.
    """

    settings: dict[str, dict[str, Any]]
    lines: list[dict[str, Any]]
    captions: dict[str, str]
    cider: np.ndarray


def score_by_setting(
    captions: Mapping[int | None, Mapping[str, str]],
    references: Mapping[str, Sequence[str]],
    *,
    meteor: bool = False,
    tokenizer: str = "auto",
) -> SplitScores:
    """
    Scores of captions against references.

    Args:
        captions: captions by `image_id`, by the beam size that they were made with; None: it is not known.
        references: captions by `image_id`, of the same images at least.
        meteor: compute METEOR 1.5 as well, which needs Java.
        tokenizer: tokenizer of the scores, of `metrics.TOKENIZERS`.
    """
    numbers: dict[str, dict[str, Any]] = {}
    lines: list[dict[str, Any]] = []
    cider = np.empty(0)
    last: dict[str, str] = {}
    for beams, of_beams in captions.items():
        last = dict(of_beams)
        texts = list(last.values())
        scores = score_captions(
            texts,
            [references[image_id] for image_id in last],
            metrics=(*DEFAULT_METRICS, "METEOR") if meteor else DEFAULT_METRICS,
            tokenizer=tokenizer,
            per_image=True,
        )
        cider = scores.pop("per_image")["CIDEr"]
        scores |= caption_diversity(texts, tokenizer)
        setting = "scores" if beams is None else "greedy" if beams == 1 else f"beam {beams}"
        numbers[setting] = {
            name: round(value, 4) if isinstance(value, float) else value for name, value in scores.items()
        }
        lines += [
            {"image_id": image_id, "beams": beams, "caption": caption, "CIDEr": round(score, 4)}
            for (image_id, caption), score in zip(last.items(), cider.tolist(), strict=True)
        ]
    return SplitScores(numbers, lines, last, cider)

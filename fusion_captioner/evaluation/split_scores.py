"""The captions of a split and their scores, for several beam sizes: what `fusion-captioner evaluate` computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from fusion_captioner.evaluation.generated_captions import generate_captions
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


def score_split(
    model: Any,
    processor: Any,
    rows: datasets.Dataset,
    beam_sizes: Sequence[int],
    *,
    meteor: bool = False,
    tokenizer: str = "auto",
    **settings: Any,
) -> SplitScores:
    """
    Caption every row with each beam size, and score the captions against those of the rows.

    Args:
        model, processor, rows, settings: as for [`generate_captions`].
        beam_sizes: at least one; 1 is greedy.
        meteor: compute METEOR 1.5 as well, which needs Java.
        tokenizer: tokenizer of the scores, of `metrics.TOKENIZERS`.

    Raises:
        ValueError: no image can be decoded; and what [`generate_captions`] raises.
    """
    references = dict(zip(rows["image_id"], rows["captions"]))
    numbers: dict[str, dict[str, Any]] = {}
    lines: list[dict[str, Any]] = []
    captions: dict[str, str] = {}
    cider = np.empty(0)
    for beams in beam_sizes:
        captions = generate_captions(model, processor, rows, show_progress=True, num_beams=beams, **settings)
        if not captions:
            raise ValueError("no image of the split can be decoded; check its images.")
        scores = score_captions(
            list(captions.values()),
            [references[image_id] for image_id in captions],
            metrics=(*DEFAULT_METRICS, "METEOR") if meteor else DEFAULT_METRICS,
            tokenizer=tokenizer,
            per_image=True,
        )
        cider = scores.pop("per_image")["CIDEr"]
        scores |= caption_diversity(list(captions.values()), tokenizer)
        numbers["greedy" if beams == 1 else f"beam {beams}"] = {
            name: round(value, 4) if isinstance(value, float) else value for name, value in scores.items()
        }
        lines += [
            {"image_id": image_id, "beams": beams, "caption": caption, "CIDEr": round(score, 4)}
            for (image_id, caption), score in zip(captions.items(), cider.tolist(), strict=True)
        ]
    return SplitScores(numbers, lines, captions, cider)

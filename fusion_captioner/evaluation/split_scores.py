"""The captions of a split and their scores, for several beam sizes: what `fusion-captioner evaluate` computes."""

from collections.abc import Sequence
from typing import Any

import datasets

from fusion_captioner.evaluation.generated_captions import generate_captions
from fusion_captioner.evaluation.scored_captions import SplitScores, score_by_setting


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
    captions: dict[int | None, dict[str, str]] = {}
    for beams in beam_sizes:
        captions[beams] = generate_captions(model, processor, rows, show_progress=True, num_beams=beams, **settings)
        if not captions[beams]:
            raise ValueError("no image of the split can be decoded; check its images.")
    references = dict(zip(rows["image_id"], rows["captions"]))
    return score_by_setting(captions, references, meteor=meteor, tokenizer=tokenizer)

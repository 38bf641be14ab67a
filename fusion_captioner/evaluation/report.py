"""The page that `fusion-captioner evaluate --report` writes: scores, and the best and worst captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from fusion_captioner.evaluation.html_page import jpeg_uri, render, shrunk
from fusion_captioner.evaluation.scored_captions import SplitScores
from fusion_captioner.image_loading import load_image

SHOWN = 20
THUMBNAIL_SIDE = 320  # pixels; about 20 kB as a JPEG

# Labels of the numbers of a setting, in their order; numbers that a setting lacks are omitted.
SCORE_NAMES = {
    "CIDEr": "CIDEr-D",
    "BLEU-1": "BLEU-1",
    "BLEU-2": "BLEU-2",
    "BLEU-3": "BLEU-3",
    "BLEU-4": "BLEU-4",
    "ROUGE-L": "ROUGE-L",
    "METEOR-exact-stem": "METEOR-exact-stem",
    "METEOR": "METEOR",
}
CAPTION_NAMES = {
    "unique_captions": "Captions that are unique",
    "dangling_endings": "Captions that end in a function word",
    "vocabulary": "Distinct words",
    "mean_length": "Words per caption, mean",
    "min_length": "Words per caption, fewest",
    "max_length": "Words per caption, most",
}
SHARES = ("unique_captions", "dangling_endings")


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """One image of the report; `image` as `load_image` takes it."""

    image_id: str
    image: Any
    references: Sequence[str]
    caption: str
    cider: float


def best_and_worst(scores: np.ndarray, shown: int = SHOWN) -> tuple[list[int], list[int]]:
    """
    Which images the report shows: the best first, and the worst first; none is in both.

    Args:
        scores: (images,) of one caption each.
        shown: at most so many of either.
    """
    order = np.argsort(-scores, kind="stable").tolist()
    best = order[: min(shown, -(-len(order) // 2))]
    return best, order[len(best) :][::-1][:shown]


def report_of_split(about: Mapping[str, Any], scores: SplitScores, rows: datasets.Dataset) -> str:
    """
    The page of a split, with the best and the worst captions of the last setting.

    Args:
        about: what was scored, such as `{"model": ..., "source": ..., "split": ...}`.
        scores: those of the split.
        rows: with `image_id`, `image` and `captions`.
    """
    row_of = {image_id: index for index, image_id in enumerate(rows["image_id"])}
    image_ids = list(scores.captions)

    def scored(position: int) -> ScoredImage:
        row = rows[row_of[image_ids[position]]]
        caption = scores.captions[row["image_id"]]
        return ScoredImage(row["image_id"], row["image"], row["captions"], caption, float(scores.cider[position]))

    best, worst = best_and_worst(scores.cider)
    return render_report(about, scores.settings, [scored(each) for each in best], [scored(each) for each in worst])


def render_report(
    about: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    best: Sequence[ScoredImage],
    worst: Sequence[ScoredImage],
) -> str:
    """
    The page.

    Args:
        about: what was scored.
        settings: numbers by the name of the setting (`"greedy"`, `"beam 3"`), as in the JSON of the command.
        best, worst: images with their captions in the last of the settings, in the order to show them.
    """
    shown = list(settings)[-1]
    return render(
        "evaluation/report.html",
        title=f"Captions of {about.get('model') or about['predictions']} on {about['source']}, {about['split']}",
        heading="Evaluation of a captioner",
        about=about,
        settings=list(settings),
        tables=[
            {"title": "Agreement with the references, times 100", "rows": _rows(SCORE_NAMES, settings)},
            {"title": "The captions themselves", "rows": _rows(CAPTION_NAMES, settings)},
        ],
        signature=settings[shown]["signature"],
        shown=shown,
        cards={"Best": best, "Worst": worst},
        thumbnail=thumbnail,
    )


def thumbnail(image: ScoredImage) -> str:
    """A small JPEG of the image as a `data:` URI."""
    size, name = (THUMBNAIL_SIDE, THUMBNAIL_SIDE), f"image_id {image.image_id!r}"
    return jpeg_uri(shrunk(load_image(image.image, size, name=name), THUMBNAIL_SIDE))


def _rows(labels: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Label → the number of each setting as text."""
    return {
        label: [_number(key, numbers[key]) for numbers in settings.values()]
        for key, label in labels.items()
        if all(key in numbers for numbers in settings.values())
    }


def _number(key: str, value: float) -> str:
    if key in SHARES:
        return f"{100 * value:.1f} %"
    if key in SCORE_NAMES:
        return f"{100 * value:.2f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)

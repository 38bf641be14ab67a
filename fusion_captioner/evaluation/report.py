"""The page that `fusion-captioner evaluate --report` writes: scores, and the best and worst captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from fusion_captioner.evaluation.html_page import jpeg_uri, render, shrunk
from fusion_captioner.image_loading import load_image

SHOWN = 20
THUMBNAIL_SIDE = 320  # pixels; about 20 kB as a JPEG

# How the numbers of a setting are called, in their order; those that are not there are left out.
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
    "mean_length": "Words a caption, mean",
    "min_length": "Words a caption, fewest",
    "max_length": "Words a caption, most",
}
SHARES = ("unique_captions", "dangling_endings")

STYLE = """\
h2 { margin: 2.5rem 0 .5rem; }
p { margin: 0 0 .75rem; max-width: 48rem; }
.break { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); margin: 0 0 1rem; }
caption { white-space: nowrap; text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { border: 1px solid var(--line); padding: .35rem .75rem; text-align: right; font-variant-numeric: tabular-nums; }
td, th[scope=col] { white-space: nowrap; }
th { font-weight: 600; }
th[scope=row] { text-align: left; font-weight: 400; }
ol.cards { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; display: grid;
  gap: .5rem 1.25rem; grid-template-columns: minmax(0, 14rem) minmax(0, 1fr) minmax(0, 1fr); }
.card img { width: 100%; height: auto; max-height: 16rem; object-fit: contain; border-radius: .25rem; }
.card h3 { font-size: .9rem; margin: 0 0 .25rem; color: var(--soft); font-weight: 600; }
.card ul { margin: 0; padding-left: 1.1rem; }
.said { font-size: 1.1rem; }
.card p, .card li { overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  .card { grid-template-columns: minmax(0, 1fr); }
  .card img { max-height: none; }
  th, td { padding: .35rem .5rem; }
}
@media print { .card { break-inside: avoid; } }
"""


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


def thumbnail(image: Any, name: str) -> str:
    """A small JPEG of the image as a `data:` URI."""
    return jpeg_uri(shrunk(load_image(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), name=name), THUMBNAIL_SIDE))


def render_report(
    about: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    best: Sequence[ScoredImage],
    worst: Sequence[ScoredImage],
) -> str:
    """
    The page.

    Args:
        about: what was scored, such as `{"model": ..., "split": ...}`.
        settings: numbers by the name of the setting (`"greedy"`, `"beam 3"`), as in the JSON of the command.
        best, worst: images with their captions in the last of the settings, in the order to show them.
    """
    shown = list(settings)[-1]
    signature = settings[shown]["signature"]
    title = f"Captions of {about['model']} on {about['source']}, {about['split']}"
    told = "<br>".join(f"{escape(name.replace('_', ' '))}: {escape(str(value))}" for name, value in about.items())
    body = f"""\
<p class="soft break">{told}</p>
<h2 id="scores">Scores</h2>
{_table("Agreement with the references, times 100", "scores-table", SCORE_NAMES, settings)}
{_table("The captions themselves", "captions-table", CAPTION_NAMES, settings)}
<p class="soft break">Signature of the scores, which two results must share to be compared: {escape(signature)}</p>
{_cards("Best", "best", best, shown)}
{_cards("Worst", "worst", worst, shown)}"""
    return render(title, "Evaluation of a captioner", STYLE, body)


def _table(title: str, name: str, rows: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(setting)}</th>' for setting in settings)
    body = "\n".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{_number(key, numbers[key])}</td>" for numbers in settings.values())
        + "</tr>"
        for key, label in rows.items()
        if all(key in numbers for numbers in settings.values())
    )
    # the region can be scrolled by keyboard where the table is wider than the screen
    return f"""\
<div class="scroll" role="region" aria-labelledby="{name}" tabindex="0">
<table>
<caption id="{name}">{escape(title)}</caption>
<thead><tr><td></td>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>"""


def _number(key: str, value: float) -> str:
    if key in SHARES:
        return f"{100 * value:.1f} %"
    if key in SCORE_NAMES:
        return f"{100 * value:.2f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _cards(title: str, name: str, images: Sequence[ScoredImage], setting: str) -> str:
    if not images:
        return ""
    cards = "\n".join(_card(image) for image in images)
    return f"""\
<h2 id="{name}">{title} {len(images)} by CIDEr-D, {escape(setting)}</h2>
<ol class="cards" aria-labelledby="{name}">
{cards}
</ol>"""


def _card(image: ScoredImage) -> str:
    identity = escape(image.image_id)
    references = "".join(f'<li dir="auto">{escape(text)}</li>' for text in image.references)
    return f"""\
<li class="card">
<div><img src="{thumbnail(image.image, f"image_id {image.image_id!r}")}" alt="Picture {identity}" loading="lazy">
<p class="soft">{identity}</p></div>
<div><h3>Caption, CIDEr-D {100 * image.cider:.1f}</h3><p class="said" dir="auto">{escape(image.caption) or "(nothing)"}</p></div>
<div><h3>References</h3><ul>{references}</ul></div>
</li>"""

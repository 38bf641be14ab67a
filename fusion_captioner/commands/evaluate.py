"""`fusion-captioner evaluate`: how good a captioner is on a split, greedy and with beams, as JSON and as a page. Other
heads are scored by `evaluate_head.py`."""

import argparse
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from fusion_captioner import __version__
from fusion_captioner.checkpoints.loading import check_captioner, load_captioner
from fusion_captioner.commands.evaluate_head import evaluate_head
from fusion_captioner.data.annotated_images import SkippedExample
from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.evaluation.generated_captions import generate_captions
from fusion_captioner.evaluation.report import ScoredImage, best_and_worst, render_report
from fusion_captioner.files import check_output_file, write_file
from fusion_captioner.metrics.caption_scores import DEFAULT_METRICS, score_captions
from fusion_captioner.metrics.diversity import caption_diversity
from fusion_captioner.metrics.meteor_java import find_meteor_jar
from fusion_captioner.training.tasks.tasks import is_captioner

BEAMS = [1, 3]
MAX_NEW_TOKENS = 30


def evaluate(options: argparse.Namespace) -> int:
    """
    Run the command; returns the exit status.

    Raises:
        ValueError, OSError: a flag, the model or the data are wrong; as far as possible, before anything is computed.
    """
    _check(options)
    if not options.as_captioner and not is_captioner(options.model, options.revision):
        return evaluate_head(options)
    options.beams = options.beams or BEAMS
    options.max_new_tokens = options.max_new_tokens or MAX_NEW_TOKENS
    skipped: list[SkippedExample] = []
    rows = _rows(options, skipped)
    model, processor = load_captioner(options.model, options.revision)
    references = dict(zip(rows["image_id"], rows["captions"]))

    settings: dict[str, dict[str, Any]] = {}
    lines: list[dict[str, Any]] = []
    captions: dict[str, str] = {}
    cider = np.empty(0)
    for beams in options.beams:
        captions = generate_captions(
            model,
            processor,
            rows,
            batch_size=options.batch_size,
            show_progress=True,
            skip_bad_images=options.skip_bad_images,
            num_beams=beams,
            max_new_tokens=options.max_new_tokens,
            **({} if options.length_penalty is None else {"length_penalty": options.length_penalty}),
        )
        if not captions:
            raise ValueError(f"{options.source}: no image of the split {options.split!r} can be decoded; check them.")
        numbers = score_captions(
            list(captions.values()),
            [references[image_id] for image_id in captions],
            metrics=(*DEFAULT_METRICS, "METEOR") if options.meteor else DEFAULT_METRICS,
            per_image=True,
        )
        cider = numbers.pop("per_image")["CIDEr"]
        numbers |= caption_diversity(list(captions.values()))
        settings["greedy" if beams == 1 else f"beam {beams}"] = {
            name: round(value, 4) if isinstance(value, float) else value for name, value in numbers.items()
        }
        lines += [
            {"image_id": image_id, "beams": beams, "caption": caption, "CIDEr": round(score, 4)}
            for (image_id, caption), score in zip(captions.items(), cider.tolist(), strict=True)
        ]

    about = {
        "model": options.model,
        "source": options.source,
        "split": options.split,
        "images": len(captions),
        "skipped_images": len({example.image_id for example in skipped}) + len(rows) - len(captions),
        "max_new_tokens": options.max_new_tokens,
        "fusion_captioner": __version__,
    }
    try:
        if options.captions:
            write_file(options.captions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        if options.report:
            write_file(options.report, _report(about, settings, rows, captions, cider))
    finally:
        # what was computed is told even where the disk was full
        print(json.dumps(about | settings, indent=2, ensure_ascii=False))
    return 0


def _check(options: argparse.Namespace) -> None:
    for name in ("batch_size", "max_new_tokens", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} ({value}) must be at least 1.")
    sizes = options.beams or BEAMS
    for beams in sizes:
        if beams < 1:
            raise ValueError(f"--beams ({beams}) must be at least 1; 1 is greedy.")
        if sizes.count(beams) > 1:
            raise ValueError(f"--beams ({' '.join(map(str, sizes))}) names {beams} twice; name it once.")
    if options.report and options.report == options.captions:
        raise ValueError(f"--report and --captions are both {options.report}; name two files.")
    for name in ("captions", "report"):
        if getattr(options, name) is not None:
            check_output_file(getattr(options, name), f"--{name}")
    if options.meteor:
        find_meteor_jar()
    check_captioner(options.model)
    if options.source.startswith((".", "/", "~")) and not Path(options.source).expanduser().exists():
        # said before a Hub name of the model is looked up
        raise FileNotFoundError(f"--source ({options.source}): no such file or folder; check the path.")


def _rows(options: argparse.Namespace, skipped: list[SkippedExample]) -> datasets.Dataset:
    """The rows to score; `skipped` is extended by what of their split is left out already."""
    everything: list[SkippedExample] = []
    splits = load_caption_dataset(
        options.source, layout=options.layout, skip_bad_images=options.skip_bad_images, skipped=everything
    )
    if options.split not in splits:
        raise ValueError(f"--split ({options.split!r}) is not in {options.source}; there are {', '.join(splits)}.")
    skipped += [example for example in everything if example.split == options.split and example.is_bad_file]
    rows = splits[options.split]
    return rows if options.limit is None else rows.select(range(min(options.limit, len(rows))))


def _report(
    about: dict[str, Any],
    settings: dict[str, dict[str, Any]],
    rows: datasets.Dataset,
    captions: dict[str, str],
    cider: np.ndarray,
) -> str:
    row_of = {image_id: index for index, image_id in enumerate(rows["image_id"])}
    image_ids = list(captions)

    def scored(position: int) -> ScoredImage:
        row = rows[row_of[image_ids[position]]]
        return ScoredImage(
            row["image_id"], row["image"], row["captions"], captions[row["image_id"]], float(cider[position])
        )

    best, worst = best_and_worst(cider)
    return render_report(about, settings, [scored(each) for each in best], [scored(each) for each in worst])

"""`fusion-captioner evaluate`: scores of a captioner on a split, greedy and with beams, as JSON."""

import argparse
import json
from pathlib import Path

from fusion_captioner.inference.loading import load_captioner
from fusion_captioner.metrics.caption_scores import DEFAULT_METRICS, score_captions
from fusion_captioner.training.caption_datasets import load_caption_dataset
from fusion_captioner.training.evaluation import generate_captions


def evaluate(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    splits = load_caption_dataset(options.source, layout=options.layout, skip_bad_images=options.skip_bad_images)
    if options.split not in splits:
        raise ValueError(f"--split {options.split!r} is not in {options.source}; there are {', '.join(splits)}.")
    rows = splits[options.split]
    if options.limit is not None:
        if options.limit < 1:
            raise ValueError(f"--limit ({options.limit}) must be at least 1.")
        rows = rows.select(range(min(options.limit, len(rows))))
    model, processor = load_captioner(options.model, options.revision)
    references = dict(zip(rows["image_id"], rows["captions"]))
    metrics = (*DEFAULT_METRICS, "METEOR") if options.meteor else DEFAULT_METRICS
    results: dict[str, object] = {"model": options.model, "source": options.source, "split": options.split}
    lines = []
    for beams in options.beams:
        captions = generate_captions(
            model,
            processor,
            rows,
            batch_size=options.batch_size,
            show_progress=True,
            num_beams=beams,
            max_new_tokens=options.max_new_tokens,
        )
        scores = score_captions(list(captions.values()), [references[image] for image in captions], metrics=metrics)
        results["greedy" if beams == 1 else f"beam {beams}"] = {
            name: round(value, 4) if isinstance(value, float) else value for name, value in scores.items()
        }
        lines += [{"image_id": image, "beams": beams, "caption": caption} for image, caption in captions.items()]
    if options.captions:
        Path(options.captions).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(json.dumps(results, indent=2, ensure_ascii=False))
    return 0

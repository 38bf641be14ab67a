"""Scores of one captioner by the number of beams and the length penalty it searches with.

    python benchmarks/beam_settings.py --checkpoint C --source FOLDER --cache FOLDER [--split val]
        [--beams 1 2 3 5] [--length-penalties 0.0 0.6 1.0] [--limit N] [--json FILE]

Every search reads the same cached features of the image encoder; greedy search has no length penalty. Choose on `val`.
"""

import argparse
import json
from pathlib import Path

from fusion_captioner.checkpoints.loading import load_captioner
from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.data.feature_cache import cached_features
from fusion_captioner.evaluation.generated_captions import generate_captions, score_generated
from fusion_captioner.process_setup import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="captioner of this package")
    parser.add_argument("--source", required=True, help="data, as for `evaluate`")
    parser.add_argument("--cache", required=True, help="folder of cached image features; filled where it is not")
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--limit", type=int, help="the first so many images only")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 2, 3, 5], help="1 is greedy (default: 1 2 3 5)")
    parser.add_argument("--length-penalties", type=float, nargs="+", default=[0.0, 0.6, 1.0], help="default: 0 0.6 1")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    keep_freed_memory()

    rows = load_caption_dataset(options.source)[options.split]
    if options.limit is not None:
        rows = rows.select(range(min(options.limit, len(rows))))
    model, processor = load_captioner(options.checkpoint)
    cached = cached_features({options.split: rows}, model, processor.image_processor, options.cache)[options.split]
    figures = []
    print(
        "| beams | length penalty | CIDEr | BLEU-4 | words a caption | different captions |\n|---|---|---|---|---|---|"
    )
    for beams in options.beams:
        for penalty in options.length_penalties if beams > 1 else [None]:
            settings = {"num_beams": beams, "max_new_tokens": 30} | (
                {} if penalty is None else {"length_penalty": penalty}
            )
            captions = generate_captions(
                model, processor, cached.rows, cached.features, batch_size=50, show_progress=True, **settings
            )
            scores = score_generated(captions, cached.rows)
            words = sum(len(caption.split()) for caption in captions.values()) / len(captions)
            different = len(set(captions.values())) / len(captions)
            figures.append(
                {"beams": beams, "length_penalty": penalty, "words": words, "different": different}
                | {name: scores[name] for name in ("CIDEr", "BLEU-4")}
            )
            print(
                f"| {beams} | {'–' if penalty is None else penalty} | {scores['CIDEr']:.4f} | {scores['BLEU-4']:.4f} "
                f"| {words:.1f} | {different:.0%} |",
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

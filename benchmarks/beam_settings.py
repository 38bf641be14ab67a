"""Scores of captioners by the settings they search with: beams, length penalty, the sequences not to repeat, the
size that images are resized to, and what likely concepts add to the scores of their words.

    python benchmarks/beam_settings.py --checkpoint C [C ...] --source FOLDER --cache FOLDER [--split val]
        [--language CODE] [--beams 1 2 3 5] [--length-penalties 0.0 0.6 1.0] [--no-repeat-ngrams 0 2 3]
        [--image-sizes 224 240] [--concept-biases 0 1.5] [--document-frequencies SOURCE] [--limit N] [--json FILE]

Every search reads the same cached features of the image encoder; greedy search has no length penalty. Choose on `val`.
"""

import argparse
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

from fusion_captioner.checkpoints.loading import load_captioner
from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.data.feature_cache import cached_features
from fusion_captioner.data.references import read_corpus
from fusion_captioner.evaluation.generated_captions import generate_captions, score_generated
from fusion_captioner.metrics.cider import DocumentFrequencies
from fusion_captioner.metrics.tokenization import find_tokenizer
from fusion_captioner.process_setup import keep_freed_memory


def repeats(caption: str) -> bool:
    """Whether two words, or four Chinese characters, stand twice in the caption."""
    words = re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", caption.lower())
    size = 4 if re.search(r"[\u4e00-\u9fff]", caption) else 2
    sequences = [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]
    return len(set(sequences)) < len(sequences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, nargs="+", help="captioners of this package")
    parser.add_argument("--source", required=True, help="data, as for `evaluate`")
    parser.add_argument("--cache", required=True, help="folder of cached image features; filled where it is not")
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--language", help="of the captions, for a captioner of several languages")
    parser.add_argument("--limit", type=int, help="the first so many images only")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 2, 3, 5], help="1 is greedy (default: 1 2 3 5)")
    parser.add_argument("--length-penalties", type=float, nargs="+", default=[0.0, 0.6, 1.0], help="default: 0 0.6 1")
    parser.add_argument("--no-repeat-ngrams", type=int, nargs="+", default=[0], help="0 allows all (default: 0)")
    parser.add_argument(
        "--image-sizes", type=int, nargs="+", metavar="PIXELS", help="sides (default: the captioner's)"
    )
    parser.add_argument("--concept-biases", type=float, nargs="+", help="`concept_bias` (default: the captioner's)")
    parser.add_argument(
        "--document-frequencies", metavar="SOURCE", help="CIDEr has those of these captions (default: the references)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    keep_freed_memory()

    rows = load_caption_dataset(options.source)[options.split]
    if options.limit is not None:
        rows = rows.select(range(min(options.limit, len(rows))))
    frequencies = None
    if options.document_frequencies:
        corpus = list(read_corpus(options.document_frequencies).values())
        frequencies = DocumentFrequencies.from_references(
            corpus, Path(options.document_frequencies).name, find_tokenizer("auto")
        )
    figures = []
    print(
        "| captioner | pixels | concept bias | beams | length penalty | no repeated | CIDEr | BLEU-4 | "
        "words per caption | different captions | with a repeated phrase |\n" + "|---" * 11 + "|"
    )
    for checkpoint, size in product(options.checkpoint, options.image_sizes or [None]):
        model, processor = load_captioner(checkpoint)
        if size is not None:
            processor.image_processor.size = {"height": size, "width": size}
        cached = cached_features({options.split: rows}, model, processor.image_processor, options.cache)[options.split]
        biases = options.concept_biases or [model.config.concept_bias]
        for bias, beams, penalty, ngram in product(
            biases, options.beams, options.length_penalties, options.no_repeat_ngrams
        ):
            model.config.concept_bias = bias
            if beams == 1 and penalty != options.length_penalties[0]:
                continue
            settings: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 30, "no_repeat_ngram_size": ngram}
            if beams > 1:
                settings["length_penalty"] = penalty
            captions = generate_captions(
                model, processor, cached.rows, cached.features, language=options.language, batch_size=50, **settings
            )
            texts = list(captions.values())
            scores = score_generated(captions, cached.rows, document_frequencies=frequencies)
            row = {
                "checkpoint": checkpoint,
                "image_size": size,
                "concept_bias": bias,
                "beams": beams,
                "length_penalty": penalty if beams > 1 else None,
            }
            row |= {"no_repeat_ngram": ngram, **{name: scores[name] for name in ("CIDEr", "BLEU-4")}}
            row["words"] = sum(len(text.split()) for text in texts) / len(texts)
            row["different"] = len(set(texts)) / len(texts)
            row["repeating"] = sum(map(repeats, texts)) / len(texts)
            figures.append(row)
            name, shown = Path(checkpoint).name, penalty if beams > 1 else "–"
            searched = (name, size or "–", bias or "–", beams, shown, ngram or "–")
            print(
                "| " + " | ".join(map(str, searched)),
                f"| {row['CIDEr']:.4f} | {row['BLEU-4']:.4f} | {row['words']:.1f} | {row['different']:.0%} "
                f"| {row['repeating']:.1%} |",
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

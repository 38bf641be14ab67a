"""Whether the maps of words are faithful: does a word need the regions that its map marks?

    python benchmarks/explanations.py --source FOLDER --json FILE [--checkpoint CAPTIONER] [--photos 200]
        [--methods attention occlusion ...] [--share 0.2] [--cover mean] [--words 4]

The captioner writes the caption of each photo, and some of its words are drawn. The regions that a word's map marks
most, a share of all, are then covered in the pixels, by the photo's mean or by a blur that leaves nothing smaller than
a region. The figure is how much further the word's log-probability falls than with as many random regions covered, the
mean of several draws. It is averaged over the words of a photo, then over photos; the interval is the 95 % bootstrap
interval over photos. "content words" are those that are not in `metrics.diversity.FUNCTION_WORDS`.

FILE keeps what was measured of each photo, so that the command can be repeated after an interruption, with more photos
and further methods.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.checkpoints.loading import load_captioner
from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.files import write_text
from fusion_captioner.image_loading import load_image
from fusion_captioner.inference.attention_maps import read_caption, words_of_tokens
from fusion_captioner.inference.attributions import ATTRIBUTIONS, ReadCaption, blurred, cover
from fusion_captioner.metrics.diversity import FUNCTION_WORDS
from fusion_captioner.process_setup import keep_freed_memory, keep_stderr_quiet

DRAWS = 4  # of random regions, per photo
RESAMPLES = 10_000
COVERS = {"mean": lambda caption: None, "blur": lambda caption: blurred(caption.pixel_values, caption.grid)}


@torch.no_grad()
def log_probability_drops(caption: ReadCaption, marked: torch.Tensor, covering: str) -> torch.Tensor:
    """How much the log-probability of each word falls `(T, N)` with the marked regions `(T, P)` covered."""
    pictures = cover(caption.pixel_values, marked.unflatten(1, caption.grid), COVERS[covering](caption))
    regions = caption.model.get_image_hidden_states(pictures)
    return caption.word_log_probabilities(caption.regions) - caption.word_log_probabilities(regions)


def most_marked(attributions: torch.Tensor, number: int) -> torch.Tensor:
    """The regions with the largest attributions `(N, P)`, as marks `(N, P)`."""
    return torch.zeros_like(attributions, dtype=torch.bool).scatter(1, attributions.topk(number, dim=1).indices, True)


def measure_photo(
    caption: ReadCaption, methods: Sequence[str], share: float, covering: str, generator: torch.Generator
) -> dict[str, list[float]]:
    """How much each word's log-probability falls, by method and with random regions covered."""
    regions = caption.regions.shape[1]
    number = max(1, round(share * regions))
    random = torch.stack([most_marked(torch.rand(1, regions, generator=generator), number)[0] for _ in range(DRAWS)])
    marks = [random, *(most_marked(ATTRIBUTIONS[method](caption), number) for method in methods)]
    different, places = torch.cat(marks).unique(dim=0, return_inverse=True)
    drops = log_probability_drops(caption, different, covering)[places].split([len(rows) for rows in marks])
    return {"random": drops[0].mean(dim=0).tolist()} | {
        method: rows.diagonal().tolist() for method, rows in zip(methods, drops[1:], strict=True)
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def table(photos: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    """The figures of all words and of content words as Markdown."""
    lines = [
        f"| method | further than random, all words, {len(photos)} photos | content words | fall itself, all words |",
        "|---|---|---|---|",
    ]
    for method in methods:
        cells = []
        for only_content in (False, True):
            means = []
            for photo in photos:
                chosen = [not only_content or word.lower() not in FUNCTION_WORDS for word in photo["words"]]
                further = np.subtract(photo["drops"][method], photo["drops"]["random"])[chosen]
                means += [further.mean()] if len(further) else []
            low, high = interval(np.array(means))
            cells.append(f"{np.mean(means):.3f} ({low:.3f} to {high:.3f})")
        fall = np.mean([np.mean(photo["drops"][method]) for photo in photos])
        lines.append(f"| {method} | {' | '.join(cells)} | {fall:.3f} |")
    fall = np.mean([np.mean(photo["drops"]["random"]) for photo in photos])
    return "\n".join([*lines, f"| random regions | – | – | {fall:.3f} |"])


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is known of each photo, measured or read from the file."""
    settings = {name: getattr(options, name) for name in ("checkpoint", "split", "share", "cover", "words")}
    document: dict[str, Any] = {"settings": settings, "photos": {}}
    if options.json.exists():
        document = json.loads(options.json.read_text(encoding="utf-8"))
        if document["settings"] != settings:
            raise ValueError(f"`--json` ({options.json}) was measured with {document['settings']}; name another file.")
    rows = load_caption_dataset(options.source)[options.split]
    order = np.random.default_rng(0).permutation(len(rows))[: options.photos].tolist()
    model, processor = load_captioner(options.checkpoint)
    for done, place in enumerate(order, 1):
        row = rows[place]
        known = document["photos"].get(row["image_id"], {"drops": {}})
        missing = [method for method in options.methods if method not in known["drops"]]
        if not missing:
            continue
        caption = read_caption(model, processor, load_image(row["image"]))
        words = words_of_tokens(processor.tokenizer, caption.sequence[0].tolist())
        generator = torch.Generator().manual_seed(place)
        chosen = [words[number] for number in torch.randperm(len(words), generator=generator)[: options.words]]
        caption = replace(caption, positions=[positions for _, positions in chosen])
        drops = measure_photo(caption, missing, options.share, options.cover, generator)
        document["photos"][row["image_id"]] = {
            "words": [word for word, _ in chosen],
            "drops": known["drops"] | drops,
        }
        write_text(options.json, json.dumps(document) + "\n")
        print(f"\r{done} of {len(order)} photos", end="", file=sys.stderr, flush=True)
    return [document["photos"][rows[place]["image_id"]] for place in order]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="data, as for `evaluate`")
    parser.add_argument("--json", type=Path, required=True, help="file of the results; what it holds is not run again")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="captioner (default: the package's)")
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--photos", type=int, default=200, help="photos, a random choice (default: 200)")
    parser.add_argument("--methods", nargs="+", choices=list(ATTRIBUTIONS), default=list(ATTRIBUTIONS))
    parser.add_argument("--share", type=float, default=0.2, help="of the regions, that is covered (default: 0.2)")
    parser.add_argument("--cover", choices=list(COVERS), default="mean", help="what with (default: mean)")
    parser.add_argument("--words", type=int, default=4, help="of a caption, a random choice (default: 4)")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    keep_stderr_quiet(reads_data=True)
    try:
        print(table(run(options), options.methods))
    except (ValueError, OSError, ImportError) as error:
        print(f"explanations.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

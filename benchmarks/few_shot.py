"""How much a few examples teach: sentiment by LoRA and by full fine-tuning, each from the same captioner.

    python benchmarks/few_shot.py DATA --json FILE [--checkpoint CAPTIONER] [--sizes 16 64 256 all] [--seeds 0 1 2]
        [--steps 200] [--cache FOLDER] [--SECTION.FIELD VALUE ...]
    python benchmarks/few_shot.py --json FILE --table

DATA is an imagefolder as the recipe `tweet_sentiment` reads it, with the splits train and validation. Every run
takes as many steps, from the same checkpoint, on the same examples for both ways of training: the first of a shuffle
by the seed, one of each label before all others. The image encoder stays as it is in both, so that its features are
computed once. Scores are of the whole of validation at the end of training; no checkpoint is chosen by them.

LoRA is peft's own, with the layers of `lora_layers`: recurrent ones and the new classifier are trained whole. Each way
of training has its learning rate, as low-rank updates begin at nothing and take larger steps. What is in FILE already
is not run again. `--table` writes few_shot.md and few_shot.svg into docs/lab/.
"""

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
from transformers import PrinterCallback, set_seed
from transformers.utils.logging import set_verbosity_error

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.checkpoints.loading import load_config, load_processor
from fusion_captioner.data.feature_cache import cached_features
from fusion_captioner.data.row_batches import rows_with_features
from fusion_captioner.metrics.classification import classification_scores
from fusion_captioner.process_setup import keep_freed_memory, keep_stderr_quiet
from fusion_captioner.training.arguments import RunArguments, read_run_arguments
from fusion_captioner.training.building import build_model
from fusion_captioner.training.lora import lora_layers
from fusion_captioner.training.tasks.classification import ClassificationTask

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = "tweet_sentiment"
METHODS = {"lora": "LoRA", "full": "full fine-tuning"}
COLOURS = {"lora": "#b30000", "full": "#1f4e79"}
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}


def run_arguments(options: argparse.Namespace, flags: Sequence[str], **training: Any) -> RunArguments:
    """The recipe on the checkpoint; of its fields the last flag wins."""
    settings = {
        "data.source": options.data,
        "data.feature_cache": options.cache,
        "model.from_checkpoint": options.checkpoint,
        "model.vision_model": "null",
        "model.config": "{}",
        "training.max_steps": options.steps,
        "training.eval_strategy": "no",
        "training.save_strategy": "no",
        "training.load_best_model_at_end": "false",
        "training.early_stopping_patience": "null",
        "training.ema_decay": 0,
        "training.per_device_train_batch_size": 16,
        "training.warmup_steps": 20,
        "training.report_to": "none",
        **{f"training.{name}": value for name, value in training.items()},
    }
    given = [word for field, value in settings.items() for word in (f"--{field}", str(value))]
    return read_run_arguments(RECIPE, [*given, *flags])


class Sentiment:
    """The data of all runs, and their features."""

    def __init__(self, options: argparse.Namespace, flags: Sequence[str]) -> None:
        self.options, self.flags = options, flags
        run = run_arguments(options, flags, output_dir="unused")
        self.task = ClassificationTask(run.data, load_config(options.checkpoint))
        splits = self.task.load_run()
        self.processor = load_processor(options.checkpoint)
        cached = cached_features(
            splits,
            build_model(self.task.model_class, run.model, self.processor, **self.task.config_fields(splits["train"])),
            self.processor.image_processor,
            str(run.data.feature_cache),
            batch_size=run.data.feature_batch_size,
            skip_bad_images=run.data.skip_bad_images,
        )
        self.features = {role: split.features for role, split in cached.items()}
        self.splits = {role: rows_with_features(rows, self.features[role]) for role, rows in splits.items()}

    def examples(self, size: int | None, seed: int) -> datasets.Dataset:
        """The first rows of a shuffle, one of each label before all others; None: all."""
        rows = self.splits["train"].shuffle(seed=seed)
        _, first = np.unique(rows["label"], return_index=True)
        if size is not None and not len(first) <= size <= len(rows):
            raise ValueError(
                f"`--sizes` ({size}) must be from {len(first)}, one example of each label, to the {len(rows)} that "
                "there are; change it."
            )
        order = [*sorted(first), *sorted(set(range(len(rows))) - set(first))]
        return rows.select(order[:size])

    def commonest(self) -> dict[str, float]:
        """Scores of a classifier that knows nothing but which label is the commonest of training."""
        labels = np.asarray(self.splits["eval"]["label"])
        guess = np.bincount(self.splits["train"]["label"]).argmax()
        return classification_scores(np.full_like(labels, guess), labels, self.task.names)[0]

    def train(self, method: str, size: int | None, seed: int) -> dict[str, Any]:
        from peft import LoraConfig, get_peft_model

        began = time.perf_counter()
        rows = self.examples(size, seed)
        with TemporaryDirectory(prefix="few-shot-") as folder:
            rate = self.options.lora_rate if method == "lora" else self.options.full_rate
            run = run_arguments(self.options, self.flags, output_dir=folder, seed=seed, learning_rate=rate)
            set_seed(seed)
            model: Any = build_model(self.task.model_class, run.model, self.processor, **self.task.config_fields(rows))
            if method == "lora":
                rank = self.options.rank
                model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, **lora_layers(model)))
            parts = {"train": rows, "eval": self.splits["eval"]}
            trainer = self.task.trainer(model, self.processor, run.training, parts, self.features)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            scores = trainer.evaluate()
        # those that had a gradient: of the others the optimiser knows nothing
        trained = sum(weight.numel() for weight in trainer.optimizer.state)  # type: ignore[union-attr]
        return {
            "method": method,
            "size": "all" if size is None else size,
            "examples": len(rows),
            "seed": seed,
            "trained_parameters": trained,
            **{name: scores[f"eval_{name}"] for name in METRICS},
            "seconds": round(time.perf_counter() - began, 1),
        }


def read_results(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or not {"settings", "commonest", "results"} <= document.keys():
        raise ValueError(f"`--json` ({path}) is no file of this benchmark; name another.")
    return document


def run(options: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    keep_freed_memory()
    keep_stderr_quiet(reads_data=True)
    set_verbosity_error()  # what of the checkpoint is new and what left out is the same in every run
    names = {
        "data": Path(options.data).name,
        "checkpoint": "" if options.checkpoint == DEFAULT_CHECKPOINT else Path(options.checkpoint).name,
    }
    budget = {name: getattr(options, name) for name in ("steps", "lora_rate", "full_rate", "rank")}
    settings = {**names, **budget, "flags": list(flags)}
    document = {} if options.json is None else read_results(options.json)
    if document and document["settings"] != settings:
        raise ValueError(
            f"`--json` ({options.json}) holds runs of {document['settings']}, and this is {settings}; name another "
            f"file."
        )
    sentiment = Sentiment(options, flags)
    document = document or {"settings": settings, "commonest": sentiment.commonest(), "results": []}
    done = {(result["method"], result["size"], result["seed"]) for result in document["results"]}
    # seed by seed, so that a stopped run leaves whole tables
    for seed in options.seeds:
        for size in options.sizes:
            for method in METHODS:
                if (method, size or "all", seed) in done:
                    continue
                result = sentiment.train(method, size, seed)
                document["results"].append(result)
                print(json.dumps(result), flush=True)
                if options.json is not None:
                    options.json.write_text(json.dumps(document, indent=1) + "\n")
    return document


def by_size(results: Sequence[dict[str, Any]]) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """Number of examples → method → the results of all seeds."""
    sizes = sorted({result["examples"] for result in results})
    return {
        size: {
            method: [result for result in results if (result["examples"], result["method"]) == (size, method)]
            for method in METHODS
        }
        for size in sizes
    }


def table(document: dict[str, Any]) -> str:
    settings, results, commonest = (document[name] for name in ("settings", "results", "commonest"))
    seeds = sorted({result["seed"] for result in results})
    start = f"`{settings['checkpoint']}`" if settings["checkpoint"] else "the bundled captioner"
    given = {name: settings[name] for name in ("steps", "lora_rate", "full_rate", "rank")}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = shlex.join(["--seeds", *map(str, seeds), *words, *settings["flags"]])
    lines = [
        "# Few examples: LoRA and full fine-tuning",
        "",
        f"Each run trains a classifier for the labels of {settings['data']} in {settings['steps']} steps. It starts "
        f"from {start}; the image encoder is frozen.",
        "Scores are those on the whole validation split at the end of training: the mean over the seeds, with the "
        "lowest and the highest in brackets.",
        f"LoRA has rank {settings['rank']} and the learning rate {settings['lora_rate']:g}; the recurrent layers and "
        "the classifier are trained in full.",
        f"Full fine-tuning has the learning rate {settings['full_rate']:g}. For comparison, always predicting the "
        f"most common label gives an accuracy of {commonest['accuracy']:.3f}",
        f"and a macro-F1 of {commonest['macro_f1']:.3f}.",
        "",
        "```",
        f"python benchmarks/few_shot.py DATA --json FILE {command}",
        "python benchmarks/few_shot.py --json FILE --table",
        "```",
        "",
        "| examples | training | accuracy | macro-F1 | seeds | trained parameters (millions) | seconds per run |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, methods in by_size(results).items():
        for method, of_method in methods.items():
            if not of_method:
                continue
            scores = [_spread([result[name] for result in of_method]) for name in METRICS]
            parameters = statistics.mean(result["trained_parameters"] for result in of_method) / 1e6
            seconds = statistics.mean(result["seconds"] for result in of_method)
            lines.append(
                f"| {size} | {METHODS[method]} | {' | '.join(scores)} | {len(of_method)} | {parameters:.2f} | "
                f"{seconds:.0f} |"
            )
    lines += [
        "",
        "![Accuracy and macro-F1 by the number of examples: one dot per seed, lines through the means](few_shot.svg)",
        "",
    ]
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def plot(document: dict[str, Any]) -> str:
    """An SVG of both scores: one dot per seed, lines through the means, examples on a logarithmic axis."""
    sizes = by_size(document["results"])
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="800" height="330" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, method in enumerate(METHODS):
        parts.append(f'<circle cx="{60 + 150 * number}" cy="14" r="5" fill="{COLOURS[method]}"/>')
        parts.append(f'<text x="{70 + 150 * number}" y="18">{METHODS[method]}</text>')
    parts.append('<path d="M352 14h24" stroke="#777" stroke-dasharray="5 4"/>')
    parts.append('<text x="382" y="18">always the most common label</text>')
    for number, metric in enumerate(METRICS):
        parts += _panel(sizes, metric, document["commonest"][metric], left=50 + 390 * number)
    return "\n".join([*parts, "</svg>", ""])


def _panel(sizes: dict[int, Any], metric: str, commonest: float, left: int) -> list[str]:
    width, top, height = 330, 40, 230
    values = [result[metric] for methods in sizes.values() for results in methods.values() for result in results]
    values.append(commonest)
    lowest, highest = math.floor(min(values) * 10) / 10, math.ceil(max(values) * 10) / 10
    highest = max(highest, lowest + 0.1)
    span = math.log(max(sizes) / min(sizes)) or 1.0

    def x(size: int) -> float:
        return round(left + 20 + (width - 40) * math.log(size / min(sizes)) / span, 1)

    def y(value: float) -> float:
        return round(top + height * (highest - value) / (highest - lowest), 1)

    parts = []
    for tick in range(round(lowest * 10), round(highest * 10) + 1):
        parts.append(f'<path d="M{left} {y(tick / 10)}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick / 10) + 4}" text-anchor="end">{tick / 10:.1f}</text>')
    parts.append(f'<path d="M{left} {y(commonest)}h{width}" stroke="#777" stroke-dasharray="5 4"/>')
    for size in sizes:
        parts.append(f'<text x="{x(size)}" y="{top + height + 18}" text-anchor="middle">{size}</text>')
    label = f"{METRICS[metric]} on validation, by the number of examples"
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">{label}</text>')
    for number, method in enumerate(METHODS):
        found = {size: [result[metric] for result in methods[method]] for size, methods in sizes.items()}
        means = [f"{x(size)},{y(statistics.mean(scores))}" for size, scores in found.items() if scores]
        parts.append(f'<polyline points="{" ".join(means)}" fill="none" stroke="{COLOURS[method]}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(size) + 6 * number - 3}" cy="{y(score)}" r="3.5" fill="{COLOURS[method]}" fill-opacity=".7"/>'  # noqa: E501
            for size, scores in found.items()
            for score in scores
        ]
    return parts


def _size(text: str) -> int | None:
    """A number of examples; `all` is None."""
    return None if text == "all" else int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="imagefolder with the splits train and validation")
    parser.add_argument("--json", type=Path, help="file of the results; what it holds is not run again")
    parser.add_argument(
        "--cache", default="runs/features", help="folder of cached image features; filled where it is not"
    )
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="where both start (default: the package's)")
    parser.add_argument(
        "--sizes", nargs="+", type=_size, default=[16, 64, 256, None], help="numbers of examples, or all"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of examples, order and new weights")
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of each run (default: 200)")
    parser.add_argument("--lora-rate", type=float, default=1e-3, help="learning rate of LoRA (default: 1e-3)")
    parser.add_argument("--full-rate", type=float, default=3e-4, help="of full fine-tuning (default: 3e-4)")
    parser.add_argument("--rank", type=int, default=8, help="of LoRA's updates (default: 8)")
    parser.add_argument("--table", action="store_true", help="write the table and the plot of the results")
    parser.add_argument("--docs", type=Path, default=REPOSITORY / "docs/lab", help="where to (default: docs/lab/)")
    options, flags = parser.parse_known_args(arguments)
    try:
        if options.data is None and not (options.table and options.json):
            raise ValueError("DATA is missing; give it, or `--json FILE --table` for a table of what was run.")
        document = read_results(options.json) if options.data is None else run(options, flags)
        if options.table:
            if not document.get("results"):
                raise ValueError(f"`--json` ({options.json}) holds no results; run the benchmark with DATA first.")
            (options.docs / "few_shot.md").write_text(table(document))
            (options.docs / "few_shot.svg").write_text(plot(document))
            print(options.docs / "few_shot.md")
    except (ValueError, OSError, ImportError) as error:
        print(f"few_shot.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

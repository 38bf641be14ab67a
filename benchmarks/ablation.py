"""What fusion, decoder, auxiliary losses and settings are worth: the same recipe and budget, one change per row.

    python benchmarks/ablation.py --source FOLDER --cache FOLDER --vision-model lite2 --out FOLDER [--steps N]
        [--rows sum attention ...] [--seeds 0 1 2] [--SECTION.FIELD VALUE ...]
    python benchmarks/ablation.py --out FOLDER --table [--rows ...] [--page NAME] [--title TITLE]

Each row is `fusion-captioner train flickr8k_cpu` with its change, scored on `val` once, at its end: no
row is given the best of several checkpoints. All rows but two have the decoder's residual, which the recipe leaves
off: with it captions are learned within the few steps that a row has. Further flags of the recipe's fields hold for
all rows. One JSON line a row and seed goes to OUT/results.jsonl; what is there is not run again, and a row that was
killed goes on from its checkpoint. `--table` writes NAME.md and NAME.svg into docs/lab/.
"""

import argparse
import json
import math
import shlex
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from fusion_captioner.process_setup import keep_freed_memory, keep_stderr_quiet
from fusion_captioner.training.train import train_from_yaml

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = "flickr8k_cpu"
METRICS = ["CIDEr", "BLEU-4", "METEOR-exact-stem", "ROUGE-L"]


class Row(NamedTuple):
    """A change of the recipe, the row without it, and what replaces the recipe before flags for all rows do."""

    label: str
    flags: list[str]
    without: str = "attention"
    recipe: tuple[str, ...] = ()


def loss(name: str, weight: float = 0.1) -> list[str]:
    return [f"--model.config.{name}_loss_weight", str(weight)]


ROWS = {
    "attention": Row("attention fusion, LSTM decoder", []),
    **{
        name: Row(f"{name} fusion", ["--model.config.fusion_type", name])
        for name in ("sum", "concat", "gated", "bilinear", "co_attention")
    },
    "transformer_decoder": Row("Transformer decoder", ["--model.config.decoder_type", "transformer"]),
    "no_residual": Row("no residual around the decoder", ["--model.config.decoder_residual", "false"]),
    "contrastive": Row("contrastive loss, 0.1", loss("contrastive")),
    # its hard negatives are drawn by what the contrastive loss trains
    "matching": Row(
        "contrastive and matching losses, 0.1 each", loss("contrastive") + loss("matching"), "contrastive"
    ),
    "reconstruction": Row("reconstruction loss, 0.1", loss("reconstruction")),
    "adversarial": Row("adversarial loss, 0.1", loss("adversarial")),
    "concept_loss": Row("concept loss, 1.0", loss("concept", 1.0)),
    "concepts": Row(
        "concept loss, 1.0, and 20 concepts",
        [*loss("concept", 1.0), "--model.config.num_concepts", "20"],
        "concept_loss",
    ),
    # in place of the recipe's fields, which would win over the preset's
    "plain": Row("plain preset", ["--model.preset", "plain"], recipe=("--model.config", "{hidden_size: 512}")),
    "no_label_smoothing": Row("no label smoothing (0.1)", ["--model.config.label_smoothing", "0"]),
    "less_dropout": Row("dropout 0.1 (0.3)", ["--model.config.dropout", "0.1"]),
    "no_word_dropout": Row("no word dropout (0.1)", ["--model.config.word_dropout", "0"]),
    "image_dropout": Row("image dropout 0.3 (0)", ["--model.config.image_dropout", "0.3"]),
    "no_mirroring": Row("no mirrored pictures", ["--data.augmentations", "[]"]),
    "no_average": Row("no average of weights", ["--training.ema_decay", "0"]),
    "small_vocabulary": Row("1,500 tokens (3,500)", ["--tokenizer.vocab_size", "1500"]),
    "byte_bpe": Row("byte-level BPE (WordPiece)", ["--tokenizer.kind", "byte_bpe"]),
    **{
        f"hidden_{size}": Row(f"hidden size {size} (512)", ["--model.config.hidden_size", str(size)])
        for size in (256, 384, 768)
    },
    "two_layers": Row("two decoder layers (1)", ["--model.config.num_hidden_layers", "2"]),
}


def read_results(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """One folder holds one budget: rows of two would stand in one table, and checkpoints go on with another recipe."""
    path = out / "settings.json"
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    elif (before := json.loads(path.read_text())) != settings:
        raise ValueError(f"`--out` ({out}) was begun with {before}, and this is {settings}; give another folder.")


def row_flags(name: str, seed: int, options: argparse.Namespace, flags: Sequence[str]) -> list[str]:
    """What the recipe is run with; the last of two flags of a field wins, and that is the row's."""
    settings = {
        "model.config.decoder_residual": "true",
        "data.source": options.source,
        "data.feature_cache": options.cache,
        "model.vision_model": options.vision_model,
        "training.output_dir": options.out / f"{name}-{seed}",
        "training.seed": seed,
        "training.eval_strategy": "no",
        "training.load_best_model_at_end": "false",
        "training.save_steps": 250,
        "training.save_total_limit": 1,
        "training.report_to": "none",
    }
    if options.steps is not None:
        settings["training.max_steps"] = options.steps
    given = [word for field, value in settings.items() for word in (f"--{field}", str(value))]
    return [*given, *ROWS[name].recipe, *flags, *ROWS[name].flags]


def run_row(name: str, seed: int, options: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    scores = train_from_yaml(RECIPE, row_flags(name, seed, options, flags), resume=True)
    with safe_open(options.out / f"{name}-{seed}" / "model.safetensors", framework="np") as weights:
        shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118 (no mapping)
    return {
        "row": name,
        "seed": seed,
        "parameters": sum(math.prod(shape) for key, shape in shapes.items() if "image_encoder." not in key),
        **{metric: scores[f"eval_{metric}"] for metric in METRICS},
        "loss": scores["eval_loss"],
    }


def run(options: argparse.Namespace, flags: Sequence[str]) -> None:
    missing = [name for name in ("source", "cache", "vision_model") if getattr(options, name) is None]
    if missing:
        raise ValueError(f"`--{missing[0].replace('_', '-')}` is missing; give it, or `--table` alone with `--out`.")
    keep_freed_memory()
    keep_stderr_quiet(reads_data=True)
    names = {"source": Path(options.source).name, "vision_model": Path(options.vision_model).name}
    check_settings(options.out, {"steps": options.steps, "flags": list(flags), **names})
    done = {(result["row"], result["seed"]) for result in read_results(options.out)}
    # seed by seed, so that a stopped run leaves whole tables
    for seed in options.seeds:
        for name in options.rows:
            if (name, seed) in done:
                continue
            result = json.dumps(run_row(name, seed, options, flags))
            with (options.out / "results.jsonl").open("a") as file:
                file.write(result + "\n")
            print(result, flush=True)
            for checkpoint in (options.out / f"{name}-{seed}").glob("checkpoint-*"):
                shutil.rmtree(checkpoint)


def by_row(results: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Row → seed → result, in the order of `ROWS`."""
    rows = {name: {result["seed"]: result for result in results if result["row"] == name} for name in ROWS}
    return {name: seeds for name, seeds in rows.items() if seeds}


def table(results: Sequence[dict[str, Any]], settings: dict[str, Any], page: str, title: str) -> str:
    rows = by_row(results)
    budget = [] if settings["steps"] is None else ["--steps", str(settings["steps"])]
    seeds = sorted({str(result["seed"]) for result in results}, key=int)
    names = [] if len(rows) == len(ROWS) else ["--rows", *rows]
    command = shlex.join([*budget, *names, "--seeds", *seeds, *settings["flags"]])
    lines = [
        f"# {title}",
        "",
        "Each row is the recipe `flickr8k_cpu`, with the decoder's residual, after one change. The value of the "
        "recipe is in brackets.",
        "All rows have the same number of steps, and the image encoder is frozen. Scores are those on the split `val` "
        f"of {settings['source']} at the end of training,",
        "averaged over the seeds. The column `difference` compares CIDEr with the row without the change, over the "
        "seeds that both rows have; the range over the seeds is in brackets.",
        "The image encoder is not included in the parameters.",
        "",
        "```",
        "python benchmarks/ablation.py --source FOLDER --cache FOLDER --vision-model lite2 --out FOLDER \\",
        f"    {command}",
        "```",
        "",
        "| change | " + " | ".join(METRICS) + " | difference | seeds | parameters (millions) |",
        "|---|" + "---|" * (len(METRICS) + 3),
    ]
    for name, seeds_of_row in rows.items():
        means = [statistics.mean(result[metric] for result in seeds_of_row.values()) for metric in METRICS]
        without = rows.get(ROWS[name].without, {})
        gains = [seeds_of_row[seed]["CIDEr"] - without[seed]["CIDEr"] for seed in seeds_of_row if seed in without]
        difference = ""
        if gains and name != ROWS[name].without:
            difference = f"{statistics.mean(gains):+.4f}"
            if len(gains) > 1:
                difference += f" ({min(gains):+.4f} to {max(gains):+.4f})"
        parameters = next(iter(seeds_of_row.values()))["parameters"] / 1e6
        scores = " | ".join(f"{mean:.4f}" for mean in means)
        lines.append(f"| {ROWS[name].label} | {scores} | {difference} | {len(seeds_of_row)} | {parameters:.2f} |")
    lines += ["", f"![CIDEr of each row: one dot per seed, a line at their mean]({page}.svg)", ""]
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]]) -> str:
    """An SVG of CIDEr: one dot per seed, a line at their mean, the axis from below the lowest to above the highest."""
    rows = by_row(results)
    values = [result["CIDEr"] for result in results]
    step = next(size for size in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if max(values) - min(values) <= 8 * size)
    first, last = (
        math.floor(min(values) / step),
        max(math.ceil(max(values) / step), math.floor(min(values) / step) + 1),
    )
    left, width, height = 290, 420, 24

    def x(value: float) -> float:
        return round(left + width * (value / step - first) / (last - first), 1)

    bottom = 20 + height * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 30}" height="{bottom + 45}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for tick in range(first, last + 1):
        place = x(tick * step)
        parts.append(f'<path d="M{place} 10V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{place}" y="{bottom + 18}" text-anchor="middle">{tick * step:.2f}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{bottom + 38}" text-anchor="middle">CIDEr on val</text>')
    for number, (name, seeds) in enumerate(rows.items()):
        y = 20 + height * number + height // 2
        scores = [result["CIDEr"] for result in seeds.values()]
        mean = x(statistics.mean(scores))
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{ROWS[name].label}</text>')
        parts.append(f'<path d="M{mean} {y - 9}v18" stroke="#b30000" stroke-width="3"/>')
        parts += [f'<circle cx="{x(score)}" cy="{y}" r="4" fill="#1f4e79" fill-opacity=".7"/>' for score in scores]
    return "\n".join([*parts, "</svg>", ""])


def write_table(out: Path, rows: Sequence[str], docs: Path, page: str, title: str) -> None:
    results = [result for result in read_results(out) if result["row"] in rows]
    if not results:
        raise ValueError(f"`--out` ({out}) holds no results.jsonl with results of these rows; run some rows first.")
    settings = json.loads((out / "settings.json").read_text())
    (docs / f"{page}.md").write_text(table(results, settings, page, title))
    (docs / f"{page}.svg").write_text(plot(results))
    print(docs / f"{page}.md")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--source", help="folder or Hub name of the captions and images, with splits train and val")
    parser.add_argument("--cache", help="folder of cached image features; filled where it is not")
    parser.add_argument("--vision-model", help="folder of the image encoder that `fusion-captioner convert` made")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of results.jsonl")
    parser.add_argument("--steps", type=int, help="optimiser steps of each row (default: the recipe's epochs)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, help="which rows (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of each row (default: 0)")
    parser.add_argument(
        "--table", action="store_true", help="write the table and the plot of the results, train nothing"
    )
    parser.add_argument("--docs", type=Path, default=REPOSITORY / "docs/lab", help="where to (default: docs/lab/)")
    parser.add_argument("--page", default="ablation", help="names of its files (default: ablation)")
    parser.add_argument("--title", default="Ablation", help="its heading (default: Ablation)")
    options, flags = parser.parse_known_args(arguments)
    try:
        if options.table:
            write_table(options.out, options.rows, options.docs, options.page, options.title)
        else:
            run(options, flags)
    except (ValueError, OSError, ImportError) as error:
        print(f"ablation.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

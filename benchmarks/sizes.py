"""Which size of captioner is worth its time: CIDEr and milliseconds per image of the sizes that ablation.py trained.

    python benchmarks/ablation.py --source FOLDER --cache FOLDER --vision-model lite2 --out FOLDER --steps N \\
        --rows attention hidden_256 hidden_384 hidden_768 small_vocabulary two_layers --seeds 0 1
    python benchmarks/sizes.py --out FOLDER --calibration PHOTOS [--docs FOLDER]

Every row's first seed is exported for ONNX Runtime in int8, once, and timed as captioning_speed.py does, from JPEG
file to 15 new tokens, in a process of its own; the sizes take turns, and the median of the rounds counts. Writes
sizes.md and sizes.svg into docs/lab/.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from ablation import REPOSITORY, ROWS, by_row, read_results
from captioning_speed import in_its_own_process
from synthetic_photos import write_photos

from fusion_captioner.cli import main as run_command

SIZES = ["hidden_256", "hidden_384", "attention", "hidden_768", "small_vocabulary", "two_layers"]
LABELS = {name: ROWS[name].label for name in SIZES} | {"attention": "as the recipe: hidden size 512, 3,500 tokens"}
SEARCHES = {(1, 1): "greedy, batch 1", (3, 8): "beam 3, batch 8"}  # (beams, images in a batch)
CAPTIONING_SPEED = Path(__file__).with_name("captioning_speed.py")

# row → its results, by seed
Rows = dict[str, dict[int, dict[str, Any]]]


def export(out: Path, row: str, seed: int, calibration: str) -> Path:
    folder = out / "exports" / row
    if not folder.is_dir():
        words = ["--to", "onnx", "--int8", "--calibration", calibration, "--out", str(folder)]
        if run_command(["export", str(out / f"{row}-{seed}"), *words]):
            raise ValueError(f"{row} could not be exported; the line above says why.")
    return folder


def time_exports(exports: dict[str, Path], rounds: int, repeats: int) -> dict[str, dict[str, float]]:
    """Row → search → milliseconds per image, and "generation" → those of beam search in generation alone."""
    threads = len(os.sched_getaffinity(0))
    found: dict[str, dict[str, list[float]]] = {row: {} for row in exports}
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), 8, 640, 480)
        for _ in range(rounds):
            for row, path in exports.items():
                for (beams, batch), search in SEARCHES.items():
                    task = {"name": row, "kind": "export", "path": str(path), "photos": photos, "threads": threads}
                    task |= {"beams": [beams], "batches": [batch], "tokens": 15, "repeats": repeats}
                    timed = in_its_own_process("time", task, str(CAPTIONING_SPEED))[0]["settings"][0]
                    seconds = timed["seconds_an_image"]
                    found[row].setdefault(search, []).append(1000 * sum(seconds.values()))
                    if beams > 1:
                        found[row].setdefault("generation", []).append(1000 * seconds["generation"])
    return {row: {name: statistics.median(values) for name, values in times.items()} for row, times in found.items()}


def mean_cider(seeds: dict[int, dict[str, Any]]) -> float:
    return statistics.mean(result["CIDEr"] for result in seeds.values())


def is_on_front(row: str, rows: Rows, times: dict[str, dict[str, float]], search: str) -> bool:
    """Whether no other size is both faster and better."""
    return not any(
        times[other][search] < times[row][search] and mean_cider(rows[other]) > mean_cider(rows[row]) for other in rows
    )


def table(rows: Rows, times: dict[str, dict[str, float]], settings: dict[str, Any], rounds: int) -> str:
    seeds = sorted({str(seed) for results in rows.values() for seed in results}, key=int)
    lines = [
        "# Sizes: CIDEr against milliseconds",
        "",
        f"The recipe `flickr8k_cpu` with the decoder's residual, {settings['steps']} steps, in {len(rows)} sizes; "
        f"CIDEr on the split `val` of {settings['source']},",
        "beam 3, averaged over the seeds (their range in brackets). Milliseconds per image from JPEG file to 15 new "
        "tokens, int8 on ONNX Runtime,",
        f"the median of {rounds} rounds in which the sizes took turns, {len(os.sched_getaffinity(0))} cores, "
        f"{date.today().isoformat()}. A size is best where no other is both faster and better.",
        "",
        "```",
        "python benchmarks/ablation.py --source FOLDER --cache FOLDER --vision-model lite2 --out FOLDER \\",
        f"    --steps {settings['steps']} --rows {' '.join(rows)} --seeds {' '.join(seeds)}",
        "python benchmarks/sizes.py --out FOLDER --calibration PHOTOS",
        "```",
        "",
        f"| size | CIDEr | seeds | parameters, M | {' | '.join(SEARCHES.values())} | of it generation | best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, results in rows.items():
        scores = [result["CIDEr"] for result in results.values()]
        spread = f" ({min(scores):.4f} to {max(scores):.4f})" if len(scores) > 1 else ""
        fronts = [search for search in SEARCHES.values() if is_on_front(row, rows, times, search)]
        cells = [
            LABELS[row],
            f"{mean_cider(results):.4f}{spread}",
            str(len(results)),
            f"{next(iter(results.values()))['parameters'] / 1e6:.2f}",
            *(f"{times[row][name]:.2f}" for name in (*SEARCHES.values(), "generation")),
            "both" if len(fronts) == len(SEARCHES) else "".join(fronts),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "![CIDEr against milliseconds per image, beam 3, batch 8](sizes.svg)", ""])


def scale(values: Sequence[float], start: float, end: float) -> tuple[list[tuple[float, float]], Any]:
    """The ticks as (value, place), and the place of a value."""
    spread = max(values) - min(values)
    step = next(size for size in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100) if spread <= 6 * size)
    low, high = math.floor(min(values) / step) * step, (math.floor(max(values) / step) + 1) * step

    def place(value: float) -> float:
        return round(start + (end - start) * (value - low) / (high - low), 1)

    ticks = [low + number * step for number in range(round((high - low) / step) + 1)]
    return [(tick, place(tick)) for tick in ticks], place


def plot(rows: Rows, times: dict[str, dict[str, float]]) -> str:
    """An SVG: one dot per seed, a labelled ring at the mean of a size."""
    search = SEARCHES[3, 8]
    x_ticks, x = scale([times[row][search] for row in rows], 70, 560)
    y_ticks, y = scale([result["CIDEr"] for results in rows.values() for result in results.values()], 330, 20)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="800" height="390" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for value, place in x_ticks:
        parts.append(f'<path d="M{place} 20V330" stroke="#ddd"/>')
        parts.append(f'<text x="{place}" y="350" text-anchor="middle">{value:g}</text>')
    for value, place in y_ticks:
        parts.append(f'<path d="M70 {place}H560" stroke="#ddd"/>')
        parts.append(f'<text x="62" y="{place + 4}" text-anchor="end">{value:.3f}</text>')
    parts.append(f'<text x="315" y="375" text-anchor="middle">milliseconds per image, {search}</text>')
    parts.append('<text x="16" y="175" text-anchor="middle" transform="rotate(-90 16 175)">CIDEr on val</text>')
    for row, results in rows.items():
        left, mean = x(times[row][search]), y(mean_cider(results))
        for result in results.values():
            parts.append(f'<circle cx="{left}" cy="{y(result["CIDEr"])}" r="3" fill="#1f4e79" fill-opacity=".6"/>')
        parts.append(f'<circle cx="{left}" cy="{mean}" r="7" fill="none" stroke="#b30000" stroke-width="2"/>')
        parts.append(f'<text x="{left + 11}" y="{mean + 4}">{LABELS[row].split(":")[0]}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of ablation.py's runs and results.jsonl")
    parser.add_argument("--calibration", required=True, help="folder of some hundreds of photos, for int8")
    parser.add_argument("--docs", type=Path, default=REPOSITORY / "docs/lab", help="where to (default: docs/lab/)")
    parser.add_argument("--rounds", type=int, default=5, help="times that every size is measured (default: 5)")
    parser.add_argument("--repeats", type=int, default=9, help="measurements in each round (default: 9)")
    options = parser.parse_args(arguments)
    try:
        rows = by_row([result for result in read_results(options.out) if result["row"] in SIZES])
        if not rows:
            raise ValueError(f"`--out` ({options.out}) holds no results of {', '.join(SIZES)}; train them first.")
        settings = json.loads((options.out / "settings.json").read_text())
        exports = {row: export(options.out, row, min(seeds), options.calibration) for row, seeds in rows.items()}
        times = time_exports(exports, options.rounds, options.repeats)
    except (ValueError, OSError, ImportError) as error:
        print(f"sizes.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    (options.docs / "sizes.md").write_text(table(rows, times, settings, options.rounds))
    (options.docs / "sizes.svg").write_text(plot(rows, times))
    print(options.docs / "sizes.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

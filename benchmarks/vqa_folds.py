"""Answers in words by cross-validation: every fold of the images is held out once; mean and 95 % interval over folds.

    python benchmarks/vqa_folds.py --source FOLDER --vision-model lite2 --cache FOLDER --out FOLDER
        [--recipe vqa_rad] [--SECTION.FIELD VALUE ...]

Each fold is `fusion-captioner train RECIPE` with its `data.fold`, scored once, at its end; further flags of the
recipe's fields hold for all. A fold whose `eval_report.json` lies in OUT is not trained again. The last line is JSON.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_captioner.data.arguments import PromptDataArguments
from fusion_captioner.process_setup import keep_freed_memory, keep_stderr_quiet
from fusion_captioner.training.arguments import read_run_arguments
from fusion_captioner.training.train import train_from_yaml

# 97.5 % quantile of Student's t, by degrees of freedom
T_QUANTILE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the width of its 95 % interval by Student's t.

    Raises:
        ValueError: fewer than two values, or more than ten.
    """
    if len(values) - 1 not in T_QUANTILE:
        raise ValueError(f"an interval is of 2 to 10 folds, and there are {len(values)}; set `data.folds` so.")
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), T_QUANTILE[len(values) - 1] * spread


def summarise(reports: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Setting → score → `mean`, `interval` (lower and upper end) and the `folds`."""
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for setting in (name for name, value in reports[0].items() if isinstance(value, dict)):
        summary[setting] = {}
        for name in reports[0][setting]:
            values = [report[setting][name] for report in reports]
            mean, half = mean_and_interval(values)
            summary[setting][name] = {"mean": mean, "interval": [mean - half, mean + half], "folds": values}
    return summary


def print_table(summary: dict[str, dict[str, dict[str, Any]]]) -> None:
    print("| shown | score | mean | 95 % interval | folds |")
    print("|---|---|---|---|---|")
    for setting, scores in summary.items():
        for name, score in scores.items():
            low, high = score["interval"]
            folds = " ".join(f"{value:.3f}" for value in score["folds"])
            print(
                f"| {setting.replace('_', ' ')} | {name.replace('_', ' ')} | {score['mean']:.3f} | {low:.3f} to "
                f"{high:.3f} | {folds} |"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, metavar="FOLDER", help="imagefolder of questions and answers")
    parser.add_argument("--vision-model", required=True, metavar="FOLDER", help="what `convert` wrote")
    parser.add_argument(
        "--cache", required=True, metavar="FOLDER", help="features of the images, which all folds share"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a folder each fold")
    parser.add_argument("--recipe", default="vqa_rad", metavar="RECIPE")
    options, flags = parser.parse_known_args(arguments)
    keep_freed_memory()
    keep_stderr_quiet(reads_data=True)
    flags = [
        *("--data.source", options.source, "--model.vision_model", options.vision_model),
        *("--data.feature_cache", options.cache, *flags),
    ]
    run = read_run_arguments(options.recipe, flags)
    if not isinstance(run.data, PromptDataArguments) or not run.data.folds:
        sys.exit(f"{options.recipe}: has no `data.folds`; give a recipe of the task `prompted` that has.")
    reports = []
    for fold in range(run.data.folds):
        folder = options.out / f"fold{fold}"
        if not (folder / "eval_report.json").is_file():
            train_from_yaml(
                options.recipe, [*flags, "--data.fold", str(fold), "--training.output_dir", str(folder)], resume=True
            )
        reports.append(json.loads((folder / "eval_report.json").read_text(encoding="utf-8")))
    summary = summarise(reports)
    print_table(summary)
    print(json.dumps({"questions": sum(report["questions"] for report in reports), **summary}))


if __name__ == "__main__":
    main()

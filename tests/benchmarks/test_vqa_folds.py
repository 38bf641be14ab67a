"""The benchmark of folds: what is trained already is read, and summed up."""

import importlib.util
import json
from pathlib import Path

import pytest
from tiny_labels import write_head_recipe

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vqa_folds.py"
spec = importlib.util.spec_from_file_location("vqa_folds", SCRIPT)
vqa_folds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(vqa_folds)


def test_folds_that_are_there_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_head_recipe(tmp_path / "recipe.yaml", tmp_path, task="prompted", data={"folds": 2})
    for fold, score in enumerate((0.5, 0.7)):
        folder = tmp_path / "out" / f"fold{fold}"
        folder.mkdir(parents=True)
        report = {"questions": 10, "question and image": {"closed_exact_match": score}}
        (folder / "eval_report.json").write_text(json.dumps(report))
    flags = ["--source", str(tmp_path), "--vision-model", "lite2", "--cache", str(tmp_path / "cache")]
    vqa_folds.main([*flags, "--out", str(tmp_path / "out"), "--recipe", str(recipe)])
    *_, row, last = capsys.readouterr().out.splitlines()
    # the deviation of two values is their distance / √2, and their mean's 0.1: times the quantile for one degree of
    # freedom
    assert row == "| question and image | closed exact match | 0.600 | -0.671 to 1.871 | 0.500 0.700 |"
    found = json.loads(last)
    assert found["questions"] == 20
    assert found["question and image"]["closed_exact_match"]["interval"] == pytest.approx([0.6 - 1.2706, 0.6 + 1.2706])


def test_an_interval_needs_folds() -> None:
    assert vqa_folds.mean_and_interval([0.4, 0.5, 0.6]) == pytest.approx((0.5, 4.303 * 0.1 / 3**0.5))
    with pytest.raises(ValueError, match="2 to 10 folds, and there are 1"):
        vqa_folds.mean_and_interval([0.4])

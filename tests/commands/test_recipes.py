"""`fusion-captioner recipes`: the list, and a copy of one."""

from pathlib import Path

import pytest

from fusion_captioner.cli import main
from fusion_captioner.training.arguments import read_run_arguments
from fusion_captioner.training.recipes import read_recipe, recipe_names


def test_all_are_listed_with_what_they_need_take_and_score(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == recipe_names()
    for name, block in zip(recipe_names(), blocks):
        words = " ".join(block.split())
        for part in read_recipe(name).description.values():
            assert " ".join(part.split()) in words
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 119


def test_one_is_printed_as_it_is_and_trains_as_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipes", "show", "coco"]) == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text(capsys.readouterr().out)
    own, shipped = read_run_arguments(mine), read_run_arguments("coco")
    assert (own.model, own.data, own.tokenizer) == (shipped.model, shipped.data, shipped.tokenizer)


def test_one_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "koco"]) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert output.out == "" and "did you mean 'coco'?" in line and "flickr8k_cpu" in line
    assert main(["train", "koco"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "koco: no such file, and no recipe; did you mean 'coco'?" in line

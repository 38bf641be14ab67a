"""Recipes are found by name, and say what they need, take and score."""

from pathlib import Path

import pytest

from fusion_captioner.training.recipes import FOLDER, find_recipe, read_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_described(name: str) -> None:
    description = read_recipe(name).description
    assert list(description) == ["trains", "needs", "takes", "scores"]
    assert all(description.values()) and "fusion-captioner" not in " ".join(description.values())
    assert f"train {name} " in read_recipe(name).text


def test_a_file_of_ones_own_comes_before_a_recipe_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco").mkdir()  # where COCO lies
    assert find_recipe("coco") == FOLDER / "coco.yaml"
    (tmp_path / "plain").write_text("model: {}")
    assert find_recipe("plain") == Path("plain")
    (tmp_path / "mine.yaml").write_text("model: {}")
    assert find_recipe(tmp_path / "mine.yaml") == tmp_path / "mine.yaml"


@pytest.mark.parametrize("name", ["koco", "configs/coco.yaml", "coco.yaml", "../recipes/coco", ""])
def test_a_name_that_is_neither_is_refused_with_the_names_there_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file, and no recipe.* recipes are assistant, .*coco, "):
        find_recipe(name)
    with pytest.raises(ValueError, match=r"is no recipe.* recipes are assistant, "):
        read_recipe(name)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'coco'"):
        find_recipe("configs/coco.yaml")

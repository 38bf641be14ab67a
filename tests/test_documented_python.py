"""The Python of the guides runs, or says in its first line why the tests do not run it."""

import ast
import json
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import fusion_captioner
from fusion_captioner import (
    DEFAULT_CHECKPOINT,
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerProcessor,
)
from fusion_captioner.checkpoints.loading import load_captioner
from fusion_captioner.inference.attention_maps import DEFAULT_METHOD
from fusion_captioner.inference.attributions import ATTRIBUTIONS

ROOT = Path(__file__).parents[1]
README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
PAGES = [
    README,
    CHINESE,
    *sorted((ROOT / "docs").rglob("*.md")),
    Path(DEFAULT_CHECKPOINT) / "README.md",
]
NOT_RUN = "# Not run by the tests: "
# what a name of a guide stands for
CLASSES = {"model": FusionCaptionerForConditionalGeneration, "processor": FusionCaptionerProcessor}


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def is_run(block: str) -> bool:
    return not block.startswith(NOT_RUN)


PAGES_WITH_PYTHON = [page for page in PAGES if python_blocks(page)]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture
def photo_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader: photos, captions, and captioners under the guides' names."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photo.jpg")
    names = [f"{number}.jpg" for number in range(16)]
    for name in names:
        photo.save(tmp_path / "photos" / name)
    rows = [f"{name},a dog runs in the snow {number}" for number, name in enumerate(names)]
    (tmp_path / "photos" / "captions.csv").write_text("\n".join(["image,caption", *rows]), encoding="utf-8")
    (tmp_path / "runs").mkdir()
    shutil.copytree(DEFAULT_CHECKPOINT, tmp_path / "my-captioner", ignore=shutil.ignore_patterns("onnx"))
    shutil.copytree(Path(DEFAULT_CHECKPOINT) / "onnx", tmp_path / "runs" / "captioner-onnx")
    monkeypatch.chdir(tmp_path)
    # the default encodes a photo 64 times
    monkeypatch.setitem(ATTRIBUTIONS, DEFAULT_METHOD, ATTRIBUTIONS["attention"])
    return tmp_path


def names_of_guides() -> dict[str, Any]:
    """What the text around the blocks takes as given: a captioner, and a batch of eight photos, texts and sounds."""
    model, processor = load_captioner(DEFAULT_CHECKPOINT)
    return {
        "model": model,
        "processor": processor,
        "torch": torch,
        "photos": [Image.open("photo.jpg")] * 8,
        "captions": ["a dog runs in the snow"] * 8,
        "tweets": ["what a day"] * 8,
        "labels": torch.arange(8) % 3,
        "sounds": [np.zeros(16_000, np.float32)] * 8,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES_WITH_PYTHON if page != CHINESE and any(map(is_run, python_blocks(page)))],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_python_blocks_run(page: Path, photo_folder: Path) -> None:
    names = names_of_guides()
    for block in filter(is_run, python_blocks(page)):
        exec(compile(block, page.name, "exec"), names)


def test_the_readme_has_the_same_python_in_chinese() -> None:
    chinese, english = ([ast.dump(ast.parse(block)) for block in python_blocks(page)] for page in (CHINESE, README))
    assert chinese == english


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_names_of_python_blocks_exist(page: Path) -> None:
    known = dict(CLASSES)
    for block in python_blocks(page):
        assert missing_names(block, known) == []


@pytest.mark.parametrize(
    "block, missing",
    [
        ("from fusion_captioner import Captioneer", ["fusion_captioner.Captioneer"]),
        ("import fusion_captioner\nfusion_captioner.DEFAULT_MODEL", ["DEFAULT_MODEL"]),
        ("model.push_to_hubb('you/captioner')", ["push_to_hubb"]),
        ("model.push_to_hub('you/captioner')", []),
    ],
)
def test_a_name_that_does_not_exist_is_found(block: str, missing: list[str]) -> None:
    assert missing_names(block, dict(CLASSES)) == missing


def missing_names(block: str, known: dict[str, Any]) -> list[str]:
    """
    What a block imports, or takes of a name in `known`, that does not exist.

    Args:
        block: Python.
        known: modules and classes by the names that stand for them or for their instances; the block adds its own.
    """
    tree, missing = ast.parse(block), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: import_module(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = import_module(node.module)
            missing += [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
            known |= {alias.asname or alias.name: getattr(module, alias.name, None) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and re.match(r"model = FusionCaptioner\w+\.", ast.unparse(node)):
            known["model"] = known[node.value.func.value.id]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and known.get(node.value.id):
            missing += [] if hasattr(known[node.value.id], node.attr) else [node.attr]
    return missing


def test_classes_of_migration_exist() -> None:
    text = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    classes = set(re.findall(r"`((?:Auto|Blip|Git|ViT|VisionEncoder|FusionCaptioner)\w*)`", text))
    assert len(classes) > 20
    missing = [name for name in classes if not (hasattr(transformers, name) or hasattr(fusion_captioner, name))]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook: Path, photo_folder: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), names)
    if notebook.stem == "finetune":
        assert set(names["captions"]) == {DEFAULT_CHECKPOINT, "runs/mine"}
        assert (photo_folder / "runs/mine/model.safetensors").is_file()
    else:
        assert len(names["texts"]) == 3 and names["other"].words == ["a", "dog", "is", "running", "on", "the", "beach"]

"""`train` and `convert` with bad input: one line that names it and exit status 2, before anything is written."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import yaml
from PIL import Image
from tiny_captioner import noise

from fusion_captioner.cli import main

RECIPE = {
    "model": {
        "image_size": 32,
        "config": {
            "vision_config": {
                "model_type": "resnet",
                "layer_type": "basic",
                "embedding_size": 8,
                "hidden_sizes": [8, 12],
                "depths": [1, 1],
            },
            "hidden_size": 16,
            "num_attention_heads": 2,
            "projection_dim": 8,
        },
    },
    "tokenizer": {"vocab_size": 200, "min_frequency": 1},
    "data": {"source": "data"},
    "training": {
        "output_dir": "run",
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "generation_max_new_tokens": 4,
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `recipe.yaml`, `data/` and `file`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "file").write_text("words")
    (tmp_path / "empty").mkdir()
    for split in ("train", "val"):
        for index in range(4):
            noise(tmp_path / "data" / f"{split}2017" / f"{index}.png", index)
        document = {
            "images": [{"id": index, "file_name": f"{index}.png"} for index in range(4)],
            "annotations": [{"image_id": index, "caption": f"a red square {index}"} for index in range(4)],
        }
        path = tmp_path / "data" / "annotations" / f"captions_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
    return tmp_path


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a command that is refused and leaves nothing behind."""

    def run(*flags: str) -> str:
        before = sorted(folder.rglob("*"))
        assert main(list(flags)) == 2
        output = capsys.readouterr()
        assert output.out == ""
        (line,) = output.err.splitlines()
        assert line.startswith("fusion-captioner: ")
        assert sorted(folder.rglob("*")) == before
        return line

    return run


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.slow
def test_a_bad_image_in_a_worker_process_is_named_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    image = folder / "data" / f"{split}2017" / "1.png"
    Image.open(image).resize((64, 64)).save(image, "JPEG")
    image.write_bytes(image.read_bytes()[:-300])
    assert main(["train", "recipe.yaml", "--training.dataloader_num_workers", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fusion-captioner: {image}: ") and "skip_bad_images" in line
    assert "Caught" not in line and "Traceback" not in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--training.output_dir", "file"], ["`training.output_dir` (file)", "is a file; name a folder"]),
        (["--training.output_dir", "file/run"], ["`training.output_dir` (file/run)", "is a file; name a folder"]),
        (["--data.feature_cache", "file"], ["`data.feature_cache` (file)", "is a file; name a folder"]),
        (["--data.feature_batch_size", "0"], ["`data.feature_batch_size` (0)", "at least 1"]),
        (["--model.config", "5"], ["`model.config` (5)", "must hold fields"]),
        (["--model.config.hidden_size", "wide"], ["hidden_size", "'wide'"]),
        (["--training.max_steps", "["], ["--training.max_steps ([)", "is not valid YAML"]),
        (["--model.vision_model", "empty"], ["`model.vision_model` (empty)", "convert"]),
        (["--tokenizer.path", "empty"], ["`tokenizer.path` (empty)", "no tokenizer"]),
        (["--model.from_checkpoint", "empty"], ["empty", "config.json"]),
        (["--data.source", "empty"], ["empty", "captions_*.json"]),
        (["--data.source", "./nowhere"], ["nowhere", "no such file or folder"]),
    ],
)
@pytest.mark.slow
def test_train(refused: Callable[..., str], flags: list[str], words: list[str]) -> None:
    line = refused("train", "recipe.yaml", *flags)
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"- 1"])
def test_a_recipe_that_is_none(refused: Callable[..., str], folder: Path, content: bytes) -> None:
    (folder / "recipe.yaml").write_bytes(content)
    assert "recipe.yaml" in refused("train", "recipe.yaml")


def test_annotations_that_are_cut_off(refused: Callable[..., str], folder: Path) -> None:
    path = folder / "data" / "annotations" / "captions_train2017.json"
    path.write_text(path.read_text()[:-20])
    line = refused("train", "recipe.yaml")
    assert str(path) in line and "malformed JSON" in line


@pytest.mark.slow
def test_images_that_are_cut_off_are_named_or_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        image = folder / "data" / f"{split}2017" / "1.png"
        image.write_bytes(image.read_bytes()[:-200])
    assert main(["train", "recipe.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1.png" in line and "skip_bad_images" in line
    assert main(["train", "recipe.yaml", "--data.skip_bad_images", "true"]) == 0
    captions = [json.loads(row) for row in (folder / "run" / "eval_captions.jsonl").read_text().splitlines()]
    assert [caption["image_id"] for caption in captions] == ["0", "2", "3"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "file"], ["--out (file)", "is a file; name a folder"]),
        (["--out", "file/below"], ["--out (file/below)", "is a file; name a folder"]),
        (["--out", "new", "--weights", "file"], ["(file) is not a PyTorch state dict", "name the .pth"]),
        (["--out", "new", "--weights", "empty"], ["(empty) is not a file"]),
    ],
)
def test_convert(refused: Callable[..., str], flags: list[str], words: list[str]) -> None:
    line = refused("convert", *flags)
    assert [word for word in words if word not in line] == []


def test_demo(refused: Callable[..., str]) -> None:
    assert "--out (file)" in refused("demo", "--out", "file")
    assert "--data (nowhere): no such folder" in refused("demo", "--data", "nowhere", "--out", "new")


def test_yaml_and_json_that_are_nested_too_deep(refused: Callable[..., str], folder: Path) -> None:
    (folder / "deep.yaml").write_text("[" * 200_000)
    assert "deep.yaml: is not valid YAML" in refused("train", "deep.yaml")
    annotations = folder / "data" / "annotations" / "captions_val2017.json"
    annotations.write_text("[" * 200_000)
    assert "captions_val2017.json: JSON nested too deep" in refused("train", "recipe.yaml")

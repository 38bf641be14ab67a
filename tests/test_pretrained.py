"""The captioner that comes with the package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import fusion_captioner
from fusion_captioner.cli import main

FOLDER = Path(fusion_captioner.DEFAULT_CHECKPOINT)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    return str(path)


def test_it_is_small_and_holds_no_pickle_and_no_code() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 30e6
    assert {file.suffix for file in FOLDER.iterdir()} == {".json", ".jinja", ".md", ".safetensors"}


def test_it_loads_in_float32_and_captions(photo: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(FOLDER)
    processor = AutoProcessor.from_pretrained(FOLDER)
    assert model.dtype == torch.float32 and model.num_parameters() <= 15e6
    generated = model.generate(**processor(images=photo, return_tensors="pt"))
    assert len(processor.batch_decode(generated, skip_special_tokens=True)[0].split()) > 3


def test_the_command_takes_it_where_no_other_is_named(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", photo]) == 0
    assert len(json.loads(capsys.readouterr().out)["caption"].split()) > 3

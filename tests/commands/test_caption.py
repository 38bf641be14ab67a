"""`fusion-captioner caption` with bad images and bad captioners: one line that names them, and the right exit
status."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_tokenizer

from fusion_captioner import FusionCaptionerImageProcessor, FusionCaptionerProcessor
from fusion_captioner.cli import main


@pytest.fixture(scope="module")
def sound_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    tiny_model().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 8
    image_processor = FusionCaptionerImageProcessor(size={"height": 32, "width": 32})
    FusionCaptionerProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def captioner(sound_captioner: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(sound_captioner, tmp_path / "captioner")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a run that captions nothing: no bars, no warnings around it."""

    def run(*flags: object) -> str:
        assert main(["caption", *map(str, flags), "--max-new-tokens", "3", "--beams", "1"]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        (line,) = output.err.splitlines()
        assert line.startswith("fusion-captioner: ")
        return line

    return run


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says so; its pixels are not there, since decoding them is the fault."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda content: b"", "the file is empty"),
        (lambda content: b"words\n", "not an image"),
        (lambda content: content[: len(content) // 2], "a damaged image"),
        (lambda content: png_of(20_000, 20_000), "make the image smaller"),
    ],
    ids=["empty", "text", "cut off", "bomb"],
)
def test_a_bad_image(
    refused: Callable[..., str],
    sound_captioner: Path,
    picture: Path,
    spoil: Callable[[bytes], bytes],
    words: str,
) -> None:
    picture.write_bytes(spoil(picture.read_bytes()))
    line = refused(picture, "--model", sound_captioner)
    assert str(picture) in line and words in line


def test_one_bad_image_of_two_hundred(
    capsys: pytest.CaptureFixture[str], sound_captioner: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(200):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03}.png")
    (folder / "100.png").write_bytes(b"\x89PNG broken")
    command = ["caption", str(folder), "--model", str(sound_captioner), "--beams", "1", "--max-new-tokens", "2"]
    assert main([*command, "--batch-size", "50"]) == 1
    output = capsys.readouterr()
    captioned = [json.loads(line)["image"] for line in output.out.splitlines()]
    assert captioned == [str(folder / f"{number:03}.png") for number in range(200) if number != 100]
    named, counted = output.err.splitlines()
    assert "100.png" in named and "1 of 200 images" in counted


def test_a_prompt_longer_than_the_maximum(refused: Callable[..., str], sound_captioner: Path, picture: Path) -> None:
    line = refused(picture, "--model", sound_captioner, "--prompt", "w5 " * 20)
    assert "of 21 tokens" in line and "maximum of 8" in line and "shorten it" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sample", "--temperature", "0"], "--temperature (0.0) must be at least 1e-06"),
        (["--sample", "--temperature", "nan"], "--temperature (nan) must be at least 1e-06"),
    ],
)
def test_a_temperature_that_is_none(refused: Callable[..., str], picture: Path, flags: list[str], words: str) -> None:
    assert words in refused(picture, "--model", "/nowhere", *flags)


def test_an_image_without_a_name(refused: Callable[..., str], sound_captioner: Path) -> None:
    assert "is empty" in refused("", "--model", sound_captioner)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"", "config.json: is not valid JSON"),
        ("config.json", b"[]", "config.json: is not a JSON object but list"),
        ("config.json", b"\xff\xfe", "config.json: is not valid JSON"),
        ("generation_config.json", b"{", "generation_config.json: is not valid JSON"),
        ("processor_config.json", b"{", "processor_config.json: is not valid JSON"),
        ("tokenizer.json", b"{", "tokenizer.json: is not valid JSON"),
        ("tokenizer.json", b'{"a": 1}', "its processor cannot be loaded"),
        ("model.safetensors", b"", "its weights are damaged"),
        ("model.safetensors", None, "its model cannot be loaded"),
        ("processor_config.json", None, "its processor cannot be loaded"),
    ],
)
def test_a_damaged_captioner(
    refused: Callable[..., str], captioner: Path, picture: Path, file: str, content: bytes | None, words: str
) -> None:
    if content is None:
        (captioner / file).unlink()
    else:
        (captioner / file).write_bytes(content)
    line = refused(picture, "--model", captioner)
    assert str(captioner) in line and words in line


def test_weights_that_are_cut_off(refused: Callable[..., str], captioner: Path, picture: Path) -> None:
    weights = captioner / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "its weights are damaged" in refused(picture, "--model", captioner)


def test_weights_of_another_shape(refused: Callable[..., str], captioner: Path, picture: Path) -> None:
    config = json.loads((captioner / "config.json").read_text())
    (captioner / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    line = refused(picture, "--model", captioner)
    assert "another shape than config.json says" in line


def test_weights_that_are_not_there_are_not_drawn_at_random(
    refused: Callable[..., str], captioner: Path, picture: Path
) -> None:
    weights: dict[str, torch.Tensor] = load_file(captioner / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("decoder.")}
    assert len(kept) < len(weights)
    save_file(kept, captioner / "model.safetensors", metadata={"format": "pt"})
    line = refused(picture, "--model", captioner)
    assert "(first: decoder." in line and "no weights in the checkpoint" in line


def test_a_config_with_a_wrong_type_names_its_file(
    refused: Callable[..., str], captioner: Path, picture: Path
) -> None:
    config = json.loads((captioner / "config.json").read_text())
    (captioner / "config.json").write_text(json.dumps(config | {"hidden_size": "16"}))
    line = refused(picture, "--model", captioner)
    assert f"{captioner}/config.json" in line and "hidden_size" in line

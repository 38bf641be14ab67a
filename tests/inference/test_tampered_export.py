"""Exports of strangers: whatever is wrong with one is a line that names its file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_exports import Export

from fusion_captioner.cli import main
from fusion_captioner.fingerprints import write_digests

RUNTIMES = ["onnx", "openvino"]


@pytest.fixture
def refused(export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of `caption` with a copy of an export, once `tamper` has changed it."""
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")

    def run(runtime: str, tamper: Callable[[Path], None], with_digests: bool = True) -> str:
        folder = shutil.copytree(export(runtime), tmp_path / runtime)
        capsys.readouterr()  # what the exporter said
        tamper(folder)
        if with_digests:  # as a stranger can
            write_digests(folder)
        assert main(["caption", str(tmp_path / "photo.png"), "--model", str(folder)]) == 2
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        assert output.out == "" and line.startswith(f"fusion-captioner: {folder}/")
        return line

    return run


@pytest.mark.parametrize(
    ("runtime", "file"),
    [("onnx", "image_part.onnx"), *(("openvino", f"{part}.bin") for part in ("image_part", "decoder_step"))],
)
@pytest.mark.slow
def test_weights_that_are_other_finite_numbers(refused: Callable[..., str], runtime: str, file: str) -> None:
    def tamper(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        content[-4096:-2048] = np.random.default_rng(0).standard_normal(512, np.float32).tobytes()
        (folder / file).write_bytes(content)

    assert f"{file} is damaged; export the captioner again" in refused(runtime, tamper, with_digests=False)


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"{}", b"7", b'{"config.json": 3}', b'{"gone": "0"}', b"[" * 200_000]
)
@pytest.mark.slow
def test_digests_that_are_none(refused: Callable[..., str], content: bytes | None) -> None:
    def tamper(folder: Path) -> None:
        (folder / "digests.json").unlink()
        if content is not None:
            (folder / "digests.json").write_bytes(content)

    assert "; export the captioner again" in refused("onnx", tamper, with_digests=False)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"[" * 200_000, b"\xff\xfe", b"\0" * 1000])
@pytest.mark.parametrize("file", ["exported_captioner.json", "preprocessor_config.json", "tokenizer.json"])
def test_a_file_of_something_else(refused: Callable[..., str], file: str, content: bytes) -> None:
    assert file in refused("onnx", lambda folder: (folder / file).write_bytes(content))


@pytest.mark.parametrize(
    ("runtime", "file"),
    [
        ("onnx", "image_part.onnx"),
        ("onnx", "decoder_step.onnx"),
        ("openvino", "image_part.xml"),
        ("openvino", "decoder_step.xml"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"garbage", b"<net><layers/></net>", b"\x08\x07" * 500, None])
def test_a_graph_that_is_none(refused: Callable[..., str], runtime: str, file: str, content: bytes | None) -> None:
    def tamper(folder: Path) -> None:
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: len(whole) // 2] if content is None else content)

    assert f"{file}: is damaged" in refused(runtime, tamper)


def test_weights_that_are_cut_off_or_not_finite(refused: Callable[..., str]) -> None:
    assert "decoder_step" in refused("openvino", lambda folder: (folder / "decoder_step.bin").write_bytes(b"1234"))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("states",), []),
        (("states",), "many"),
        (("states", 0, "shape"), ["images", "texts", 10**12]),
        (("states", 0, "shape"), ["images", "texts", 1, 3]),
        (("states", 0, "shape"), ["images", "texts", -1, "past"]),
        (("states", 0, "name"), 7),
        (("regions",), []),
        (("vocab_size",), "50"),
        (("vocab_size",), 2),
        (("max_positions",), "40"),
        (("generation", "eos_token_ids"), ["2"]),
        (("generation", "eos_token_ids"), 2),
        (("generation", "settings"), {"num_beams": "three"}),
        (("generation", "settings"), {"beams": 3}),
        (("tokenizer", "bos_token_id"), None),
        (("tokenizer", "pad_token_id"), 10**9),
        (("tokenizer",), None),
        (("concept_bias",), "much"),
        (("concepts",), None),
        (("concepts",), {"": [5, 10**9]}),
        (("concepts",), {"en": [5]}),
        (("concepts",), {"": [5]}),
        (("output_layers",), None),
        (("output_layers",), {"": [0, 1, 5]}),
        (("output_layers",), {"": [0, 2, 1]}),
        (("output_layers",), {"": [0, 1, 2, 10**9]}),
        (("output_layers",), {"de": [0, 1, 2]}),
        (("output_layers",), {"": [0, 1, 2]}),
    ],
)
def test_a_description_that_does_not_fit(refused: Callable[..., str], keys: tuple[Any, ...], value: object) -> None:
    def tamper(folder: Path) -> None:
        document = place = json.loads((folder / "exported_captioner.json").read_text())
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / "exported_captioner.json").write_text(json.dumps(document))

    assert "is damaged" in refused("onnx", tamper)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", {"height": 60_000, "width": 60_000}),
        ("size", {"height": "32", "width": 32}),
        ("size", [32, 32]),
        ("image_mean", "grey"),
        ("resample", 99),
        ("resize_mode", None),
    ],
)
def test_settings_of_images_that_are_none(refused: Callable[..., str], key: str, value: object) -> None:
    def tamper(folder: Path) -> None:
        document = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps(document | {key: value}))

    assert "preprocessor_config.json" in refused("onnx", tamper)

"""`fusion-captioner export`, and `caption` on what it writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_exports import Export, tiny_processor
from tiny_models import tiny_model

from fusion_captioner.cli import main
from fusion_captioner.commands import shared_flags
from fusion_captioner.inference import runtimes

pytestmark = pytest.mark.slow

# what the console script runs, and whether torch was imported
SCRIPT = """
import sys
from fusion_captioner.cli import main
status = main(sys.argv[1:])
assert [name for name in ("torch", "transformers") if name in sys.modules] == []
sys.exit(status)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Two good ones with a bad one between them."""
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.jpg")]
    Image.new("RGB", (40, 30), (200, 30, 30)).save(paths[0])
    paths[1].write_bytes(b"no picture")
    Image.linear_gradient("L").convert("RGB").save(paths[2])
    return [str(path) for path in paths]


def refused(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """The one line about what is wrong."""
    assert main([str(flag) for flag in flags]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line


def test_the_flags_offer_every_runtime() -> None:
    assert ["torch", *runtimes.RUNTIMES_OF_PARTS] == shared_flags.RUNTIMES


def test_lines_and_errors_are_those_of_torch(
    capsys: pytest.CaptureFixture[str], export: Export, checkpoint: Path, pictures: list[str]
) -> None:
    flags = ["--num-captions", "2", "--max-new-tokens", "6", "--prompt", "w7"]
    assert (
        main(["caption", *pictures, "--model", str(checkpoint), "--runtime", "torch", "--dtype", "float32", *flags])
        == 1
    )
    expected = capsys.readouterr()
    for runtime in ("onnx", "openvino"):
        finished = subprocess.run(
            [sys.executable, "-c", SCRIPT, "caption", *pictures, "--model", str(export(runtime)), *flags],
            capture_output=True,
            text=True,
        )
        assert (finished.returncode, finished.stdout) == (1, expected.out), finished.stderr
        errors = [line for line in expected.err.splitlines() if line.startswith("fusion-captioner: ")]
        assert finished.stderr.splitlines() == errors


def test_a_checkpoint_is_exported_and_captions(
    capsys: pytest.CaptureFixture[str], export: Export, pictures: list[str]
) -> None:
    folder = export("onnx")
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "image_part.onnx",
        "decoder_step.onnx",
    } <= names
    assert main(["caption", pictures[0], "--model", str(folder), "--runtime", "onnx", "--sample", "--seed", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == pictures[0]


def test_a_model_for_another_runtime(
    capsys: pytest.CaptureFixture[str], export: Export, checkpoint: Path, pictures: list[str]
) -> None:
    line = refused(capsys, "caption", pictures[0], "--model", export("onnx"), "--runtime", "openvino")
    assert "exported for --runtime onnx" in line
    line = refused(capsys, "caption", pictures[0], "--model", export("onnx"), "--runtime", "torch")
    assert "is an export" in line
    line = refused(capsys, "caption", pictures[0], "--model", checkpoint, "--runtime", "onnx")
    assert "fusion-captioner export" in line


@pytest.mark.parametrize(("runtime", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    export: Export,
    pictures: list[str],
    runtime: str,
    package: str,
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    folder = export(runtime)
    monkeypatch.setattr(runtimes, "import_module", missing)
    # not the core that an earlier test left
    monkeypatch.setattr(runtimes, "openvino_core", runtimes.openvino_core.__wrapped__)
    line = refused(capsys, "caption", pictures[0], "--model", folder)
    assert package in line and f"pip install 'fusion-captioner[{runtime}]'" in line

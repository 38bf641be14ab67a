"""Outputs of commands: one writer at a time, nothing half-written after an interruption, a full disk named."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tiny_exports import tiny_processor
from tiny_models import tiny_model

from fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.cli import main
from fusion_captioner.export.captioner import EXPORTERS

HOLDER = """
import sys
from fusion_captioner.file_locks import lock_output
with lock_output(sys.argv[1], "--out"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("captioner")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


def command(name: str, captioner: str, out: Path) -> list[str]:
    if name == "train":
        recipe = out.with_name("recipe.yaml")
        recipe.write_text(yaml.safe_dump({"data": {"source": "nowhere"}, "training": {"output_dir": str(out)}}))
        return ["train", str(recipe)]
    if name in ("--report", "--captions"):
        return ["evaluate", captioner, "--source", "nowhere", name, str(out)]
    if name == "ray":
        return ["caption", str(out.parent), "--engine", "ray", "--out", str(out)]
    flags = {"export": [captioner, "--to", "onnx"], "average": [captioner, captioner], "convert": [], "demo": []}
    return [name, *flags.get(name, [captioner]), "--out", str(out)]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that writes `tmp_path / "out"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "name", ["train", "export", "shrink", "average", "convert", "--report", "--captions", "ray", "demo"]
)
def test_a_second_writer_is_refused(
    name: str, captioner: str, holder: subprocess.Popen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(name, captioner, tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"out): is being written by process {holder.pid} on " in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["export", "shrink", "average"])
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.slow
def test_an_interruption_leaves_no_half_folder(
    name: str, exists: bool, captioner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
        (out / "notes.txt").write_text("kept")

    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    # the model is written by then; its graphs take seconds and would be written as well
    monkeypatch.setitem(EXPORTERS, "onnx", lambda program, shapes, path: path.with_suffix(".onnx").touch())
    monkeypatch.setattr(FusionCaptionerProcessor, "save_pretrained", interrupted)
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", interrupted)
    assert main(command(name, captioner, out)) == 130
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "notes.txt"] if exists else [])


def test_a_full_disk_is_named(
    captioner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(command("shrink", captioner, tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "out") in line and "cannot be written (No space left on device); make room" in line
    assert list(tmp_path.iterdir()) == []

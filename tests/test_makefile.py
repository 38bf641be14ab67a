"""`make` finds a Python by itself."""

import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


def make_venv(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What `make` would run to make a .venv, where `folder` holds all programs but make and the shell's own."""
    shutil.copy(Path(__file__).parents[1] / "Makefile", folder)
    command = [MAKE, "--dry-run", ".venv/bin/python", *options]
    return subprocess.run(command, cwd=folder, env={"PATH": str(folder)}, capture_output=True, text=True)


def write_python(folder: Path, name: str, fits: bool) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\nexit {0 if fits else 1}\n")
    program.chmod(0o755)


def test_first_python_that_fits_is_taken(tmp_path: Path) -> None:
    write_python(tmp_path, "python3.12", fits=False)
    write_python(tmp_path, "python3", fits=True)
    assert make_venv(tmp_path).stdout == "python3 -m venv .venv\n"
    write_python(tmp_path, "python3.13", fits=True)
    assert make_venv(tmp_path).stdout == "python3.13 -m venv .venv\n"


def test_no_python_that_fits_is_said_in_one_line(tmp_path: Path) -> None:
    write_python(tmp_path, "python3.10", fits=False)
    done = make_venv(tmp_path, "PYTHON=python3.10")
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "No Python from 3.11 on" in done.stderr and "python3.10" in done.stderr


def test_the_oldest_versions_are_the_bounds_of_setup_cfg() -> None:
    root = Path(__file__).parents[1]
    setup = ConfigParser()
    setup.read(root / "setup.cfg")
    extras = [setup["options.extras_require"][name] for name in ("onnx", "openvino", "search", "test")]
    bounds = {}
    for line in "\n".join([setup["options"]["install_requires"], *extras]).splitlines():
        if ">=" in line:
            name, _, bound = line.partition(",")[0].partition(">=")
            bounds[name.strip()] = bound.strip()
    lines = (root / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert oldest.keys() == bounds.keys()
    for name, bound in bounds.items():
        # 2.7 and 2.7.0 are one version
        assert oldest[name].removesuffix(".0").removesuffix(".0") == bound.removesuffix(".0"), name

"""Wheel and sdist hold the whole package: installed outside the checkout, it captions, lists recipes and trains."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from tiny_recipe import MODEL_CONFIG, write_data

import fusion_captioner

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[1]
PACKAGE = Path(fusion_captioner.__file__).parent
# hooks of the build backend, which `make dist` calls in an environment of its own
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """A process that does not find the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy, so that the checkout stays as it is."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "dist"))
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(CHECKOUT / name, source)
    for hook in ("build_wheel", "build_sdist"):
        run([sys.executable, "-c", BUILD, hook, out], source)
    return out


@pytest.fixture(scope="module")
def command(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fusion-captioner` of an environment that has the package from the wheel, and other packages from this one."""
    environment = tmp_path_factory.mktemp("empty") / "venv"
    folder = environment.parent
    run([sys.executable, "-m", "venv", "--without-pip", environment], folder)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    (wheel,) = built.glob("*.whl")
    run([*pip, wheel], folder)
    site_packages = run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder
    ).stdout.strip()
    # searched after its own, and without the links to checkouts in it
    (Path(site_packages) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run([python, "-c", "import fusion_captioner; print(fusion_captioner.__file__)"], folder).stdout
    assert where.startswith(site_packages)
    return environment / "bin" / "fusion-captioner"


def test_they_hold_every_file_of_the_package(built: Path) -> None:
    files = {f"{PACKAGE.name}/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*") if path.is_file()}
    files = {file for file in files if "__pycache__" not in file}
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name.startswith(f"fusion_captioner-{fusion_captioner.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        assert files - set(archive.namelist()) == set()
    with tarfile.open(sdist) as archive:
        assert files - {name.partition("/")[2] for name in archive.getnames()} == set()


def test_the_installed_command_captions_lists_recipes_and_trains(command: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.png")
    captioned = json.loads(run([command, "caption", "photo.png"], tmp_path).stdout)
    assert len(captioned["caption"].split()) > 3
    assert "flickr8k_cpu\n" in run([command, "recipes"], tmp_path).stdout
    write_data(tmp_path / "data")
    flags = ["--data.source", "data", "--training.max_steps", "1", "--training.per_device_train_batch_size", "2"]
    flags += ["--model.config", json.dumps(MODEL_CONFIG), "--model.image_size", "32", "--tokenizer.min_frequency", "1"]
    run([command, "train", "plain", *flags, "--training.output_dir", "out"], tmp_path)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "train plain" in (tmp_path / "out" / "README.md").read_text()

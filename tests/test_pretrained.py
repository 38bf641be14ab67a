"""The captioner that comes with the package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import fusion_captioner
from fusion_captioner.cli import main
from fusion_captioner.fingerprints import fingerprint
from fusion_captioner.inference.captioner import load_on_runtime
from fusion_captioner.inference.exported_captioner import ExportedCaptioner, read_description
from fusion_captioner.inference.torch_captioner import TorchCaptioner

FOLDER = Path(fusion_captioner.DEFAULT_CHECKPOINT)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    return str(path)


def test_it_is_small_and_holds_no_pickle_and_no_code() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert (FOLDER / "model.safetensors").stat().st_size <= 40e6
    assert sum(file.stat().st_size for file in files) < 56e6
    assert {file.suffix for file in files} == {".json", ".jinja", ".md", ".onnx", ".safetensors"}


def test_it_loads_in_float32_and_captions(photo: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(FOLDER)
    processor = AutoProcessor.from_pretrained(FOLDER)
    assert model.dtype == torch.float32 and model.num_parameters() <= 20e6
    generated = model.generate(**processor(images=photo, return_tensors="pt"))
    assert len(processor.batch_decode(generated, skip_special_tokens=True)[0].split()) > 3


@pytest.mark.slow
def test_the_command_takes_it_where_no_other_is_named(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    captions = []
    for flags in ([], ["--model", str(FOLDER / "onnx")], ["--runtime", "torch"]):
        assert main(["caption", photo, *flags]) == 0
        captions.append(json.loads(capsys.readouterr().out)["caption"])
    assert captions[0] == captions[1] and len(captions[0].split()) > 3
    assert len(captions[2].split()) > 3


def test_its_export_has_its_weights_tokenizer_and_settings() -> None:
    model = AutoModelForImageTextToText.from_pretrained(FOLDER)
    description = read_description(FOLDER / "onnx")
    assert description["dtype"] == "int8"
    assert description["checkpoint"] == fingerprint(weights=model.state_dict(), digest_size=16)
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert description["generation"]["settings"].items() <= generation.items()
    tokenizers = [json.loads((folder / "tokenizer.json").read_text()) for folder in (FOLDER, FOLDER / "onnx")]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.slow
def test_its_export_captions_unless_torch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    for name in (fusion_captioner.DEFAULT_CHECKPOINT, f"{FOLDER}/", FOLDER.name):
        assert isinstance(load_on_runtime(name), ExportedCaptioner)
        assert isinstance(load_on_runtime(name, runtime="onnx"), ExportedCaptioner)
    for dtype in (None, "float32"):
        assert isinstance(load_on_runtime(str(FOLDER), runtime="torch", dtype=dtype), TorchCaptioner)


def test_what_its_export_cannot_do_is_refused(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--dtype", "bfloat16"], ["--dtype (bfloat16)", "--runtime torch"]),
        (["--runtime", "openvino"], ["--to openvino"]),
    ):
        assert main(["caption", photo, *flags]) == 2
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        assert output.out == "" and [word for word in words if word not in line] == []


# what the console script runs; then the most memory that it held, in KiB, and what it imported
FIRST_CAPTION = """
import re, sys
from pathlib import Path
from fusion_captioner.cli import main
assert main(sys.argv[1:]) == 0
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(peak, *sys.modules, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_first_caption_loads_no_torch_and_takes_little_memory(photo: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", FIRST_CAPTION, "caption", photo], capture_output=True, text=True, check=True
    )
    assert len(json.loads(finished.stdout)["caption"].split()) > 3
    peak, *modules = finished.stderr.split()
    assert {"torch", "transformers", "datasets", "pandas", "scipy", "asyncio"} & set(modules) == set()
    assert int(peak) < 200_000


@pytest.mark.real_data
def test_most_captions_of_its_export_are_those_of_torch(real_data: Path) -> None:
    photos = sorted(map(str, (real_data / "coco" / "val2017").glob("*.jpg")))[:40]
    of_torch, of_export = (load_on_runtime(str(FOLDER), runtime=runtime) for runtime in ("torch", "onnx"))
    captions = [captioner.caption(photos, "", num_beams=3) for captioner in (of_torch, of_export)]
    assert sum(one == other for one, other in zip(*captions, strict=True)) >= len(photos) / 2

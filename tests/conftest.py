import gc
import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest

# Models this tiny gain nothing from threads, and on a busy machine threads wait for one another. torch reads this when
# it is imported, here and in the processes that tests start; this file imports it late, since the process that only
# hands out tests to the others has no use for it.
os.environ["OMP_NUM_THREADS"] = "1"

# Fixtures that take seconds to make, and the group of the tests that share one: a worker runs a group alone.
GROUPS = {
    "assistant": "assistant",
    "built": "wheel",
    "classifier": "classifier",
    "coco_corpus": "coco",
    "export": "exports",
    "int8": "exports",
    "page_url": "page",
    "results": "evaluate_modules",
}


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("real_data") or item.get_closest_marker("java"):
            item.add_marker(pytest.mark.slow)
        for fixture in GROUPS.keys() & getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(GROUPS[fixture]))


def pytest_collection_finish() -> None:
    """What is imported and collected lives to the end: each full collection would go through it again for nothing."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos and captions that `FUSION_CAPTIONER_DATA` names (`coco/`, `flickr8k/`, ... below
    it)."""
    folder = os.environ.get("FUSION_CAPTIONER_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FUSION_CAPTIONER_DATA names no folder with real data")
    return Path(folder)


@pytest.fixture(scope="session")
def java() -> str:
    """The `java` program, with pycocoevalcap's jars importable, too."""
    program = shutil.which("java")
    if program is None or find_spec("pycocoevalcap") is None:
        pytest.skip("Java or pycocoevalcap is not installed")
    return program


@pytest.fixture(scope="session")
def onnx_operators_once() -> None:
    """torch reads the source of a thousand ONNX functions anew for each graph that it exports, a second each time."""
    from torch.onnx._internal.exporter import _registration

    if apis := getattr(_registration, "onnxscript_apis", None):  # private: other versions may lack it
        apis.get_torchlib_ops = cache(apis.get_torchlib_ops)


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory, onnx_operators_once: None) -> Callable[..., Path]:
    """`export(runtime, **fields)`: what the command writes of a tiny captioner with these fields, once."""
    from tiny_exports import exported_model, image_size, tiny_processor

    from fusion_captioner.cli import main

    @cache
    def write(runtime: str, fields: str) -> Path:
        checkpoint, folder = (tmp_path_factory.mktemp(name) / runtime for name in ("checkpoint", "export"))
        exported_model(**json.loads(fields)).save_pretrained(checkpoint)
        tiny_processor(image_size(**json.loads(fields))).save_pretrained(checkpoint)
        with redirect_stdout(StringIO()) as said:
            assert main(["export", str(checkpoint), "--to", runtime, "--out", str(folder)]) == 0
        assert said.getvalue().strip() == str(folder)
        return folder

    # the ways to attend and remember that are the config's own, named or not, are one export
    own = {"fusion_type": "attention", "text_encoder_type": "lstm", "decoder_type": "lstm"}
    return lambda runtime, **fields: write(runtime, json.dumps(own | fields))

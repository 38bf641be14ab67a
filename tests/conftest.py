import os
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_exports import Export, tiny_processor
from tiny_models import tiny_model

from fusion_captioner.export.captioner import export_captioner

# Models this tiny gain nothing from threads, and on a busy machine threads wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos and captions that `FUSION_CAPTIONER_DATA` names (`coco/`, `flickr8k/`, ... below it)."""
    folder = os.environ.get("FUSION_CAPTIONER_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FUSION_CAPTIONER_DATA names no folder with real data")
    return Path(folder)


@pytest.fixture(scope="session")
def java() -> str:
    """The `java` program, with pycocoevalcap's jars importable beside it."""
    program = shutil.which("java")
    if program is None or find_spec("pycocoevalcap") is None:
        pytest.skip("Java or pycocoevalcap is not installed")
    return program


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """`export(runtime, **fields)`: the folder of a tiny captioner with these fields of its config, written once."""

    @cache
    def write(runtime: str, **fields: str) -> Path:
        folder = tmp_path_factory.mktemp("export") / runtime
        return export_captioner(tiny_model(**fields), tiny_processor(), runtime, folder)

    return write

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from hub_server import hub  # noqa: F401


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

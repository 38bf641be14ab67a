"""Exports of tiny captioners, each written once a session."""

from functools import cache
from pathlib import Path

import pytest
from tiny_exports import Export, tiny_processor
from tiny_models import tiny_model

from fusion_captioner.inference.export_captioner import export_captioner


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """`export(runtime, **fields)`: the folder of a tiny captioner with these fields of its config."""

    @cache
    def write(runtime: str, **fields: str) -> Path:
        folder = tmp_path_factory.mktemp("export") / runtime
        return export_captioner(tiny_model(**fields), tiny_processor(), runtime, folder)

    return write

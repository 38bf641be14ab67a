"""What the tests of single commands share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_exports import tiny_processor
from tiny_models import tiny_model

from fusion_captioner.cli import main


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a command that does nothing."""

    def run(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        (line,) = output.err.splitlines()
        assert line.startswith("fusion-captioner: ")
        return line

    return run

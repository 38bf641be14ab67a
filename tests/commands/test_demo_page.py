import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from fusion_captioner.cli import main
from fusion_captioner.commands import demo_page


def test_what_is_wrong_is_said_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_page, "find_spec", lambda name: None)
    assert main(["demo-page"]) == 2
    assert "fusion-captioner[demo]" in capsys.readouterr().err
    monkeypatch.setattr(demo_page, "find_spec", find_spec if find_spec("gradio") else lambda name: name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo-page", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"--port ({port})" in error and "give another one" in error and len(error.splitlines()) == 1
    assert main(["demo-page", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "no such folder" in capsys.readouterr().err

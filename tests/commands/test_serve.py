"""`fusion-captioner serve` as a process: it says where it is, answers, ends when it is told to; and bad input."""

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from colour_captioner import photo, wait_until

from fusion_captioner.inference.captioner import BUNDLED_EXPORT

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")


def test_a_port_in_use(refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = refused("serve", "--port", port)
    assert f"--port ({port}): is in use on 127.0.0.1; end what uses it" in line


@pytest.mark.parametrize(
    ("module", "command"),
    [("fastapi", "serve"), ("python_multipart", "serve"), ("prometheus_client", "serve")],
)
def test_a_missing_extra(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, module: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(command)
    assert f"needs {module}; install the extra with: pip install 'fusion-captioner[{command}]'" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "70000"], "--port (70000) must be 0"),
        (["--host", "no.such.host.invalid"], "--host (no.such.host.invalid): is no address of this machine"),
        (["--host", "192.0.2.1"], "--host (192.0.2.1): cannot listen on port 8000"),
        (["--batch-size", "0"], "--batch-size (0) must be at least 1"),
        (["--queue", "0"], "--queue (0) must be at least 1"),
        (["--batch-wait", "-1"], "--batch-wait (-1.0) must be 0 to 10000"),
        (["--max-body-mib", "nan"], "--max-body-mib (nan) must be above 0"),
        (["--max-megapixels", "0"], "--max-megapixels (0.0) must be above 0"),
        (["--name", ""], "--name ('') is empty"),
        (["--port", "0", "--model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_flags_that_are_wrong(refused: Callable[..., str], flags: list[str], words: str) -> None:
    assert words in refused("serve", *flags)


def test_an_index_that_does_not_exist(refused: Callable[..., str], captioner: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    line = refused("serve", "--port", 0, "--model", captioner, "--index", tmp_path / "nowhere")
    assert "nowhere: no such folder; make one with: fusion-captioner index" in line


class Server:
    """A server process, and the lines that it writes."""

    def __init__(self, *flags: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fusion_captioner.cli", "serve", "--port", "0", *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        wait_until(lambda: bool(self.lines), 120)
        found = re.fullmatch(r"fusion-captioner: serving (\S+) on (http://127\.0\.0\.1:\d+) .*", self.lines[0])
        assert found is not None, self.lines
        self.name, self.url = found.groups()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))


@pytest.fixture
def server(captioner: Path, tmp_path: Path, form: str) -> Iterator[Server]:
    """Of a checkpoint on torch, or of the bundled export, which starts sooner."""
    (tmp_path / "tiny").symlink_to(captioner if form == "checkpoint" else BUNDLED_EXPORT)
    server = Server("--model", tmp_path / "tiny", "--batch-wait", 1000, "--max-new-tokens", 5)
    yield server
    server.process.kill()
    server.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("form", "ending"), [("checkpoint", signal.SIGTERM), ("export", signal.SIGINT)])
def test_running_requests_end_before_the_server_does(server: Server, ending: signal.Signals) -> None:
    assert server.name == "tiny"
    answers: list[Any] = []

    def ask() -> None:
        answers.append(httpx.post(f"{server.url}/caption", files={"file": ("a.png", photo())}, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: httpx.get(f"{server.url}/healthz").json()["waiting_images"] == 3)
    server.process.send_signal(ending)
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all(answer.json()["captions"][0]["caption"] for answer in answers)
    assert server.process.wait(60) == 0
    server.reader.join(10)
    assert server.lines[1:] == ["fusion-captioner: the server has ended"]
    assert server.process.stdout is not None and server.process.stdout.read() == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz")

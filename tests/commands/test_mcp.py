"""`fusion-captioner mcp` as a process: the protocol's own client on stdin and stdout and over HTTP; and bad input."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from colour_captioner import photo

mcp = pytest.importorskip("mcp")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for red in (1, 2):
        (folder / f"{red}.png").write_bytes(photo(red))
    return folder


def command(photos: Path, *flags: str) -> list[str]:
    """By default with the bundled export, which starts sooner than torch."""
    return ["-m", "fusion_captioner.cli", "mcp", "--root", str(photos), "--max-new-tokens", "4", *flags]


def test_a_missing_extra(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    line = refused("mcp", "--root", photos)
    assert "needs mcp; install the extra with: pip install 'fusion-captioner[mcp]'" in line


def test_a_root_that_is_no_folder_and_a_port_in_use(refused: Callable[..., str], photos: Path) -> None:
    assert "--root (/no/such/folder): is no folder" in refused("mcp", "--root", "/no/such/folder")
    assert "/no/such/model" in refused("mcp", "--root", photos, "--model", "/no/such/model")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = refused("mcp", "--root", photos, "--transport", "http", "--port", port)
    assert f"--port ({port}): is in use on 127.0.0.1" in line


async def use(server: Any, photos: Path) -> tuple[list[tuple[float, float | None]], dict[str, Any]]:
    """Caption a folder, and be refused a file outside of it."""
    progress: list[tuple[float, float | None]] = []

    async def report(done: float, total: float | None, message: str | None) -> None:
        progress.append((done, total))

    async with mcp.Client(server, read_timeout_seconds=120) as client:
        result = await client.call_tool("caption_folder", {"folder": "."}, progress_callback=report)
        outside = await client.call_tool("caption_image", {"path": "/etc/passwd"})
    assert outside.is_error and "lies outside the folders" in outside.content[0].text
    assert not result.is_error
    return progress, result.structured_content


@pytest.mark.slow
def test_the_official_client_on_stdin_and_stdout(photos: Path) -> None:
    server = mcp.StdioServerParameters(command=sys.executable, args=command(photos), env=dict(os.environ))
    progress, result = asyncio.run(use(server, photos))
    assert (result["captioned"], result["failed"]) == (2, []) and progress == [(2, 2)]
    assert (photos / "1.txt").read_text().strip() and (photos / "2.txt").exists()


@pytest.mark.slow
def test_nothing_but_the_protocol_on_stdout(photos: Path, captioner: Path) -> None:
    version = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    requests = [
        {"id": 1, "method": "initialize", "params": version},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "caption_image", "arguments": {"path": "1.png"}}},
    ]
    process = subprocess.Popen(
        [sys.executable, *command(photos, "--model", str(captioner))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    for request in requests:
        process.stdin.write(json.dumps({"jsonrpc": "2.0", **request}) + "\n")
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(2)]
    rest, errors = process.communicate(timeout=60)  # closes stdin, which ends the server
    assert [json.loads(line)["id"] for line in lines] == [1, 2]
    assert json.loads(lines[1])["result"]["structuredContent"]["image"] == "1.png"
    assert (rest, errors, process.returncode) == ("", "", 0)


@pytest.mark.slow
def test_the_official_client_over_http(photos: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, *command(photos, "--transport", "http", "--port", "0")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        found = re.search(r"tools for assistants at /mcp on (http://127\.0\.0\.1:\d+)", process.stderr.readline())
        assert found is not None
        progress, result = asyncio.run(use(f"{found[1]}/mcp", photos))
        assert result["captioned"] == 2 and progress == [(2, 2)]
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=60)
        assert (rest, errors, process.returncode) == ("", "fusion-captioner: the server has ended\n", 0)
    finally:
        process.kill()
        process.wait()

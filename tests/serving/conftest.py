"""Servers of a captioner that names colours, on a free port."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from colour_captioner import ColourCaptioner, Serve


@pytest.fixture
def captioner() -> ColourCaptioner:
    return ColourCaptioner()


@pytest.fixture
def serve(captioner: ColourCaptioner) -> Iterator[Serve]:
    """`serve(takes_prompts=False, search=None, **limits)` starts a server on a free port and returns its URL."""
    uvicorn = pytest.importorskip("uvicorn")
    from fusion_captioner.serving.http_app import Limits, create_app
    from fusion_captioner.serving.http_server import bind
    from fusion_captioner.serving.served_captioner import ServedCaptioner

    servers: list[tuple[Any, threading.Thread]] = []

    def start(takes_prompts: bool = False, search: Any = None, **limits: Any) -> str:
        app = create_app(ServedCaptioner(captioner, "colours", takes_prompts), Limits(**limits), search)
        listener = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=10))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    captioner.gate.set()
    for server, thread in servers:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()

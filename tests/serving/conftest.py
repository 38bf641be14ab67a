"""Servers of a captioner that names colours, on a free port, and the page of a tiny captioner, served by Gradio."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_captioner import ColourCaptioner, Serve
from PIL import Image
from tiny_exports import tiny_processor
from tiny_models import tiny_model


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


class FoundPhotos:
    """A search that finds all photos of a folder, and one that is gone."""

    def __init__(self, folder: Path) -> None:
        self.names = [str(folder / name) for name in ("2.png", "gone.png", "1.png")]

    def find_text(self, text: str, top: int) -> list[dict[str, Any]]:
        return [{"image": name, "score": 0.25} for name in self.names[:top]]


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (48, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def page_url(photo_folder: Path) -> Iterator[str]:
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'fusion-captioner[demo]'")
    from fusion_captioner.serving.page import build_page, launch_options
    from fusion_captioner.serving.page_photos import PagePhotos

    photos = PagePhotos(tiny_model(), tiny_processor())
    files = [str(file) for file in sorted(photo_folder.glob("*.png"))]
    page = build_page(photos, photos, FoundPhotos(photo_folder), photo_folder, files)
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    page.close()

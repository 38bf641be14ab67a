"""Captions from a Hub repository without script, over real HTTP."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi, close_session
from PIL import Image

pytestmark = pytest.mark.slow

LOAD = """
import json, sys
from fusion_captioner.data.caption_datasets import load_caption_dataset

rows = {}
for streaming in (False, True):
    data = load_caption_dataset(sys.argv[1], caption_column="words", streaming=streaming)
    rows[str(streaming)] = [
        [split, row["image_id"], row["captions"], len(row["image"]["bytes"])] for split in data for row in data[split]
    ]
try:
    load_caption_dataset("user/nowhere")
except FileNotFoundError as error:
    rows["error"] = str(error)
print(json.dumps(rows))
"""


def picture(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), colour, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "home") as server:
        yield server


@pytest.fixture
def repository(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for split, numbers in {"train": (1, 2), "validation": (3,)}.items():
        columns = {
            "image": [{"bytes": picture(number), "path": None} for number in numbers],
            "words": [[f"a {number}", f"b {number}"] for number in numbers],
            "image_id": list(numbers),
        }
        table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # a session reads the proxies when it is made
    api = HfApi(endpoint=hub.url, token=TOKEN)
    api.create_repo("user/captions", repo_type="dataset")
    api.upload_folder(repo_id="user/captions", repo_type="dataset", folder_path=tmp_path / "data", path_in_repo="data")
    close_session()
    return "user/captions"


def test_a_repository_loads_by_name_and_as_a_stream(hub: HubServer, repository: str, tmp_path: Path):
    command = [sys.executable, "-c", LOAD, repository]
    done = subprocess.run(command, env=hub.environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    expected = [
        [split, str(number), [f"a {number}", f"b {number}"], len(picture(number))]
        for split, number in (("train", 1), ("train", 2), ("val", 3))
    ]
    assert rows["False"] == expected
    assert rows["True"] == expected
    assert "user/nowhere" in rows["error"]
    assert "\n" not in rows["error"]

"""`task.json` of saved models, as all commands read it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_captioner.checkpoints.saved_task import TASK_NAMES, read_saved_task, saved_task
from fusion_captioner.training.task_file import read_task
from fusion_captioner.training.tasks import TASKS


def test_every_task_is_known() -> None:
    assert set(TASK_NAMES) == set(TASKS)


def test_a_folder_with_and_without_a_task(tmp_path: Path) -> None:
    assert saved_task(str(tmp_path), "main") is None
    with pytest.raises(OSError, match=r"has no task\.json"):
        read_task(str(tmp_path), "main")
    (tmp_path / "task.json").write_text(json.dumps({"task": "prompted", "data": {"val_fraction": 0.5}}))
    assert read_saved_task(str(tmp_path), "main") == ("prompted", {"val_fraction": 0.5})


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 200_000, b"7", b'{"task": ["prompted"], "data": {}}', b"\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "task.json").write_bytes(content)
    for read in (saved_task, read_task):
        with pytest.raises(ValueError, match=r"task\.json: is damaged \("):
            read(str(tmp_path), "main")


def test_a_folder_is_read_without_torch(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps({"task": "prompted", "data": {}}))
    program = """
import sys
from fusion_captioner.checkpoints.saved_task import saved_task
assert saved_task(sys.argv[1], "main") == "prompted"
sys.exit(any(name in sys.modules for name in ("torch", "transformers")))
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 0

"""`task.json`, next to a saved model, read without torch: exports and servers of them need only this."""

import json
from pathlib import Path
from typing import Any

from fusion_captioner.files import expanded

TASK_FILE = "task.json"
# Those of `fusion_captioner.training.tasks` as well, which needs torch.
TASK_NAMES = ("captioning", "classification", "prompted", "multiple_choice", "retrieval")


def read_saved_task(name: str, revision: str) -> tuple[str, dict[str, Any]] | None:
    """
    The name of a checkpoint's task, and the fields of its section `data`; None where it has no such file: captioners
    of other origin have none, and a Hub model may be on disk without it.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    path = expanded(name) / TASK_FILE
    if not path.parent.is_dir():
        from transformers.utils import cached_file  # a Hub model runs on torch anyway

        missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = cached_file(name, TASK_FILE, revision=revision, **missing)
        if found is None:
            return None
        path = Path(found)
    elif not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        task, data = document["task"], document["data"]
        if task in TASK_NAMES and isinstance(data, dict):
            return task, data
        reason = f"task {task!r:.60}"
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(f"{path}: is damaged ({reason}); train or download it again.")


def saved_task(name: str, revision: str) -> str | None:
    """The name of a checkpoint's task; see [`read_saved_task`]."""
    saved = read_saved_task(name, revision)
    return None if saved is None else saved[0]

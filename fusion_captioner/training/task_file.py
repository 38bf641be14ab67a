"""`task.json`, next to a saved model: its task and how its rows were preprocessed, so `evaluate` does the same."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fusion_captioner.checkpoints.loading import load_config
from fusion_captioner.checkpoints.saved_task import TASK_FILE, read_saved_task, saved_task
from fusion_captioner.training.tasks import TASKS
from fusion_captioner.training.tasks.captioning import CaptioningTask

# Fields of the section `data` that belong to a run, and not to the model that it makes.
FIELDS_OF_RUNS = (
    "source",
    "splits",
    "images_folder",
    "val_fraction",
    "allow_urls",
    "caption_source",
    "config_name",
    "revision",
    "streaming",
    "cache_dir",
    "skip_bad_images",
    "augmentations",
    "feature_cache",
    "feature_batch_size",
)


def write_task(folder: Path, task: str, data: Any) -> None:
    """Save the name of a task and its section `data` in the folder of a model."""
    kept = {name: value for name, value in asdict(data).items() if name not in FIELDS_OF_RUNS}
    (folder / TASK_FILE).write_text(json.dumps({"task": task, "data": kept}, indent=2) + "\n", encoding="utf-8")


def read_task(name: str, revision: str, **changes: Any) -> tuple[str, Any]:
    """
    The name of a checkpoint's task, and its section `data` with other values for some fields.

    Raises:
        OSError: the checkpoint has no such file.
        ValueError: the file is damaged.
    """
    saved = read_saved_task(name, revision)
    if saved is None:
        raise OSError(
            f"{name}: has no {TASK_FILE}, which says how its rows are preprocessed; give a checkpoint that "
            "`fusion-captioner train` saved."
        )
    task, data = saved
    kind = TASKS[task].data_arguments
    known = {item.name for item in fields(kind)}
    for field in changes:
        if field not in known:
            raise ValueError(
                f"`{field}` is no setting of the data of the task {task!r}, which {name} has; leave it out."
            )
    return task, kind(**{field: value for field, value in data.items() if field in known} | changes)


def is_captioner(name: str, revision: str) -> bool:
    """Whether a checkpoint is scored by its captions: all are, but those that were trained for another task."""
    try:
        architectures = load_config(name, revision).architectures or []
    except OSError:
        return True  # scoring captions reads the data first, and then reports what is wrong with the model
    if CaptioningTask.model_class.__name__ not in architectures:
        return not {task.model_class.__name__ for task in TASKS.values()} & set(architectures)
    task = saved_task(name, revision)
    return task is None or TASKS[task] is CaptioningTask

"""The tasks other than captioning: what `train` and `evaluate` need to know of each, and where it is kept."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import datasets
from transformers.utils import cached_file

from fusion_captioner.checkpoints.loading import load_config
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.modeling_fusion_captioner import (
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerPreTrainedModel,
)
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.arguments import HEAD_SECTIONS
from fusion_captioner.training.head_trainer import HeadTrainer
from fusion_captioner.training.tasks.classification import ClassificationTask
from fusion_captioner.training.tasks.multiple_choice import MultipleChoiceTask
from fusion_captioner.training.tasks.prompted import GenerationTask
from fusion_captioner.training.tasks.retrieval import MIRRORED, RetrievalTask
from fusion_captioner.training.training_arguments import HeadTrainingArguments

# How a checkpoint's rows were made into inputs: beside the model, so that `evaluate` makes them likewise.
TASK_FILE = "task.json"
# What of the section `data` belongs to a run, and not to the model that came of it.
OF_THE_RUN = (
    "source",
    "splits",
    "images_folder",
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


class HeadTask(Protocol):
    """
    One task.

    Attributes:
        head: class of its model.
        trained_to: what such a model does, as in "trained to classify".
        max_text_length: of a new tokenizer, in tokens.
        mirrored: roles of the rows whose images are wanted mirrored, too.
    """

    head: type[FusionCaptionerPreTrainedModel]
    trained_to: str
    mirrored: Sequence[str]

    @property
    def max_text_length(self) -> int: ...

    def load_run(self) -> dict[str, datasets.Dataset]:
        """The rows to train on, `train`, and those to evaluate, `eval`, if any."""

    def load_split(self, split: str, limit: int | None) -> datasets.Dataset:
        """The rows of a split to evaluate, the first so many."""

    def images(self, rows: datasets.Dataset) -> datasets.Dataset:
        """The images of rows, each once or more often: `image` and `image_id`."""

    def texts(self, rows: datasets.Dataset) -> Iterable[str]:
        """What a tokenizer is trained on."""

    def config_fields(self, rows: datasets.Dataset) -> dict[str, Any]:
        """Fields of the model's config that follow from the training rows."""

    def trainer(
        self,
        model: Any,
        processor: FusionCaptionerProcessor,
        arguments: HeadTrainingArguments,
        splits: Mapping[str, datasets.Dataset],
        features: Mapping[str, ImageFeatures],
    ) -> HeadTrainer:
        """The trainer of `splits["train"]`, which evaluates `splits["eval"]`; either may be absent."""

    def report(self, trainer: Any, rows: datasets.Dataset) -> dict[str, Any]:
        """What the trainer's last evaluation, of `rows`, found in full."""


TASKS: dict[str, Any] = {
    "classification": ClassificationTask,
    "generation": GenerationTask,
    "multiple_choice": MultipleChoiceTask,
    "retrieval": RetrievalTask,
}


def is_captioner(name: str, revision: str) -> bool:
    """Whether a checkpoint is to be scored as a captioner: all are but those that a task of `TASKS` trained."""
    try:
        architectures = load_config(name, revision).architectures or []
    except OSError:
        return True  # which looks at the data first, and then tells what is wrong with the model
    heads = {task.head.__name__ for task in TASKS.values()}
    if FusionCaptionerForConditionalGeneration.__name__ not in architectures:
        return not heads & set(architectures)
    # neither of the two is an error: captioners have no such file, and one on disk may be all there is of a Hub model
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(name, TASK_FILE, revision=revision, **missing) is None


def write_task(folder: Path, task: str, data: Any) -> None:
    """Keep beside a model how its rows were made into inputs."""
    kept = {name: value for name, value in asdict(data).items() if name not in OF_THE_RUN}
    (folder / TASK_FILE).write_text(json.dumps({"task": task, "data": kept}, indent=2) + "\n", encoding="utf-8")


def read_task(name: str, revision: str, **changes: Any) -> tuple[str, Any]:
    """
    The task of a checkpoint, and its section `data` with other values for some fields.

    Raises:
        OSError: the checkpoint has no such file.
        ValueError: the file is damaged.
    """
    try:
        path = cached_file(name, TASK_FILE, revision=revision)
    except OSError as error:
        raise OSError(
            f"{name}: has no {TASK_FILE}, which tells how its rows are made into inputs; give a checkpoint that "
            "`fusion-captioner train` saved."
        ) from error
    try:
        document = json.loads(Path(str(path)).read_text(encoding="utf-8"))
        kind, _ = HEAD_SECTIONS[document["task"]]
        known = {item.name for item in fields(kind)}
        return document["task"], kind(**{k: v for k, v in document["data"].items() if k in known} | changes)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: is damaged ({type(error).__name__}: {error}); train or download it again."
        ) from error


__all__ = ["MIRRORED", "TASKS", "HeadTask", "is_captioner", "read_task", "write_task"]

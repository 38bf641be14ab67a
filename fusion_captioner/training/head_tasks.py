"""The tasks other than captioning: what `train` and `evaluate` need to know of each, and where it is kept."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import datasets
from transformers.utils import cached_file

from fusion_captioner.modeling_fusion_captioner import FusionCaptionerPreTrainedModel
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.arguments import HEAD_SECTIONS
from fusion_captioner.training.classification_task import ClassificationTask
from fusion_captioner.training.feature_shards import ImageFeatures
from fusion_captioner.training.modality_trainer import Evaluated, ModalityTrainer
from fusion_captioner.training.training_arguments import HeadTrainingArguments

# How a checkpoint's rows were made into inputs: beside the model, so that `evaluate` makes them likewise.
TASK_FILE = "task.json"
# What of the section `data` belongs to a run, and not to the model that came of it.
OF_THE_RUN = ("source", "splits", "skip_bad_images", "feature_cache", "feature_batch_size")


class HeadTask(Protocol):
    """
    One task.

    Attributes:
        head: class of its model.
        trained_to: what such a model does, as in "trained to classify".
    """

    head: type[FusionCaptionerPreTrainedModel]
    trained_to: str
    data: Any

    def load(self, splits: Mapping[str, int | None]) -> dict[str, datasets.Dataset]:
        """Rows of the named splits with `image` and `image_id`, the first so many of each (None: all); the first split
        is that which is trained on."""

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
    ) -> ModalityTrainer:
        """The trainer of `splits["train"]`, which evaluates `splits["eval"]`; either may be absent."""

    def report(self, evaluated: Evaluated, rows: datasets.Dataset) -> dict[str, Any]:
        """What an evaluation of `rows` found, in full."""


TASKS: dict[str, Any] = {"classification": ClassificationTask}


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
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: is damaged ({type(error).__name__}: {error}); train or download it again."
        ) from error

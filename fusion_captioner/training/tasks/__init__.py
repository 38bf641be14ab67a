"""The tasks that models are trained for, by the value of `task` in a recipe; the first is the default."""

from typing import Any

from fusion_captioner.training.tasks.captioning import CaptioningTask
from fusion_captioner.training.tasks.classification import ClassificationTask
from fusion_captioner.training.tasks.multiple_choice import MultipleChoiceTask
from fusion_captioner.training.tasks.prompted import PromptedTask
from fusion_captioner.training.tasks.retrieval import RetrievalTask
from fusion_captioner.training.tasks.task import Task

TASKS: dict[str, type[Task[Any]]] = {
    "captioning": CaptioningTask,
    "classification": ClassificationTask,
    "prompted": PromptedTask,
    "multiple_choice": MultipleChoiceTask,
    "retrieval": RetrievalTask,
}

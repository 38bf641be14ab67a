"""The task `multiple_choice`: questions with choices about images, or about clips with subtitles."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import ChoiceDataArguments
from fusion_captioner.data.choice_collating import ChoiceCollator
from fusion_captioner.data.choice_questions import load_choice_questions
from fusion_captioner.data.tvqa import load_tvqa
from fusion_captioner.multiple_choice import FusionCaptionerForMultipleChoice
from fusion_captioner.training.modality_trainer import ONE_SETTING, QUESTION_SETTINGS, ModalityTrainer
from fusion_captioner.training.tasks.modalities import ModalityTask

LOADERS = {"imagefolder": load_choice_questions, "tvqa": load_tvqa}
IMAGE_FEATURES = datasets.Features({"image": datasets.Image(decode=False), "image_id": datasets.Value("string")})


class MultipleChoiceTask(ModalityTask[ChoiceDataArguments]):
    """
    What is particular to the task; see [`~fusion_captioner.training.tasks.tasks.HeadTask`].

    Args:
        data: the section `data`.
        config: of the checkpoint that training goes on from, or that is evaluated; not looked at.
    """

    head = FusionCaptionerForMultipleChoice
    trained_to = "choose answers"
    collator = ChoiceCollator

    def __init__(self, data: ChoiceDataArguments, config: FusionCaptionerConfig | None = None) -> None:
        super().__init__(data)

    def load_run(self) -> dict[str, datasets.Dataset]:
        loaded = LOADERS[self.data.layout](self.data, self.data.limits)
        return {role: loaded[split] for role, split in self.data.roles.items()}

    def load_split(self, split: str, limit: int | None) -> datasets.Dataset:
        return LOADERS[self.data.layout](self.data, {split: limit})[split]

    def images(self, rows: datasets.Dataset) -> datasets.Dataset:
        if "frames" not in rows.column_names:
            return rows
        frames = {
            image_id: frame
            for row in rows.select_columns(["frames", "frame_ids"])
            for image_id, frame in zip(row["frame_ids"], row["frames"], strict=True)
        }
        entries = [{"image": frame, "image_id": image_id} for image_id, frame in frames.items()]
        return datasets.Dataset.from_list(entries, features=IMAGE_FEATURES)

    def texts(self, rows: datasets.Dataset) -> Iterator[str]:
        yield from rows["question"]
        for choices in rows["choices"]:
            yield from choices

    def config_fields(self, rows: datasets.Dataset) -> dict[str, Any]:
        takes_frames = "frames" in rows.column_names and "image" in self.data.modalities
        return {"max_frames": self.data.num_frames} if takes_frames else {}

    @property
    def settings(self) -> Mapping[str, Sequence[str]]:
        return QUESTION_SETTINGS if "image" in self.data.modalities else ONE_SETTING

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The share of the questions, of which the answer is known, that are answered rightly."""
        known = labels >= 0
        if not known.any():
            raise ValueError(
                "no question of the split to evaluate has a known answer, as in TVQA's public test split; evaluate on "
                "another."
            )
        return {"accuracy": float((scores.argmax(axis=1) == labels)[known].mean())}

    def report(self, trainer: ModalityTrainer, rows: datasets.Dataset) -> dict[str, Any]:
        """For each setting the accuracy, in all and by the question's first word, where that begins ten or more."""
        evaluated = trainer.evaluated
        questions = [rows[int(number)]["question"] for number in evaluated.rows]
        first = np.array([question.lower().split(" ")[0] for question in questions])
        kinds = [word for word in np.unique(first) if ((first == word) & (evaluated.labels >= 0)).sum() >= 10]
        everything = "question and image" if "image" in self.data.modalities else "question"
        settings = {}
        for setting, scores in evaluated.scores.items():
            numbers: dict[str, Any] = self.score(scores, evaluated.labels)
            numbers["by_first_word"] = {
                str(word): self.score(scores[first == word], evaluated.labels[first == word]) for word in kinds
            }
            settings[setting or everything] = numbers
        return {"questions": len(evaluated.rows), **settings}

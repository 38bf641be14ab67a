"""The task `multiple_choice`: questions with choices about images, or about clips with subtitles."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np

from fusion_captioner.data.arguments import ChoiceDataArguments
from fusion_captioner.data.choice_questions import load_choice_questions
from fusion_captioner.data.row_batches import ChoiceCollator
from fusion_captioner.data.tvqa import load_tvqa
from fusion_captioner.multiple_choice import FusionCaptionerForMultipleChoice
from fusion_captioner.training.model_card import CardText
from fusion_captioner.training.tasks.modalities import IMAGE_INPUTS, ONE_SETTING, ModalityTask, ModalityTrainer
from fusion_captioner.training.training_arguments import BaseTrainingArguments

# Inputs that evaluation hides, as in `modalities.py`.
QUESTION_SETTINGS: dict[str, Sequence[str]] = {"": (), "question_only": IMAGE_INPUTS}
LOADERS = {"imagefolder": load_choice_questions, "tvqa": load_tvqa}
IMAGE_FEATURES = datasets.Features({"image": datasets.Image(decode=False), "image_id": datasets.Value("string")})


CARD = CardText(
    pipeline_tag="visual-question-answering",
    tags=("multiple-choice", "multimodal"),
    metrics={"accuracy": "accuracy"},
    auto_class="AutoModelForMultipleChoice",
    about="A model that chooses among answers to a question about an image, by cross-modal fusion",
    usage="""\
choices = ["a dog", "a cat"]
inputs = processor(images="photo.jpg", text=["what is it?"], choices=[choices], return_tensors="pt")
print(choices[int(model(**inputs).logits.argmax())])""",
    limits="It always chooses, even where no answer is right, and often the most common answer to such a "
    "question: compare\nthe score of the question alone.",
)


@dataclass
class MultipleChoiceTrainingArguments(BaseTrainingArguments):
    """[`BaseTrainingArguments`] for multiple choice; the best checkpoint has the best accuracy."""

    output_dir: str = field(default="runs/multiple_choice", metadata={"help": "Folder of checkpoints and results."})
    metric_for_best_model: str | None = field(
        default="accuracy", metadata={"help": "Score that chooses the best checkpoint."}
    )


class MultipleChoiceTask(ModalityTask[ChoiceDataArguments]):
    """See [`~fusion_captioner.training.tasks.task.Task`]."""

    model_class = FusionCaptionerForMultipleChoice
    data_arguments = ChoiceDataArguments
    training_arguments = MultipleChoiceTrainingArguments
    trained_to = "choose answers"
    collator = ChoiceCollator

    def load_run(self) -> dict[str, Any]:
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

    def whole_texts(self, rows: datasets.Dataset) -> Sequence[str]:
        return ()  # a question that is too long is an error

    def config_fields(self, rows: datasets.Dataset) -> dict[str, Any]:
        takes_frames = "frames" in rows.column_names and "image" in self.data.modalities
        return {"max_frames": self.data.num_frames} if takes_frames else {}

    @property
    def settings(self) -> Mapping[str, Sequence[str]]:
        return QUESTION_SETTINGS if "image" in self.data.modalities else ONE_SETTING

    def card_text(self) -> CardText:
        return CARD

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The share of right answers, among the questions whose answer is known."""
        known = labels >= 0
        if not known.any():
            raise ValueError(
                "no question of the split to evaluate has a known answer, as in TVQA's public test split; evaluate on "
                "another split."
            )
        return {"accuracy": float((scores.argmax(axis=1) == labels)[known].mean())}

    def report(self, trainer: ModalityTrainer, rows: datasets.Dataset) -> dict[str, Any]:
        """The accuracy of each setting, in all and by the first word of the question, for words of ten or more
        questions."""
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

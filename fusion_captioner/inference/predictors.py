"""Labels and answers for pictures, on torch: what `fusion-captioner classify` and `answer` print.

Each predictor takes a batch of pictures, or None for no picture, and gives a JSON entry per picture, or one.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from fusion_captioner.checkpoints.loading import load_head
from fusion_captioner.inference.image_batches import ImageBatches, Summary
from fusion_captioner.inference.launched_process import launched_process
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.multiple_choice import FusionCaptionerForMultipleChoice
from fusion_captioner.printing import print_json
from fusion_captioner.sequence_classification import FusionCaptionerForSequenceClassification

Pictures = list[Image.Image] | None


class Predictor(Protocol):
    processor: Any

    def predict(self, pictures: Pictures) -> list[dict[str, Any]]: ...


class Classifier:
    """
    Labels pictures, a text, or both.

    Args:
        name, loading: see `load_head`.
        text: the text that belongs to every picture.
    """

    def __init__(self, name: str, text: str | None, **loading: Any) -> None:
        self.text = text
        self.model, self.processor = load_head(
            FusionCaptionerForSequenceClassification, name, trained_to="classify", **loading
        )
        self.labels = [label for _, label in sorted(self.model.config.id2label.items())]  # type: ignore[union-attr]

    @torch.inference_mode()
    def predict(self, pictures: Pictures) -> list[dict[str, Any]]:
        if self.text is None:
            inputs = self.processor(images=pictures, return_tensors="pt")
        else:
            texts = [self.text] * (len(pictures) if pictures else 1)
            inputs = self.processor(images=pictures, text=texts, add_eos=True, truncation=True, return_tensors="pt")
        about = {} if self.text is None else {"text": self.text}
        return [about | self._found(logits) for logits in self.model(**inputs, return_dict=True).logits]

    def _found(self, logits: torch.Tensor) -> dict[str, Any]:
        if self.model.config.problem_type == "regression":
            return _rounded(self.labels, logits)
        if self.model.config.problem_type == "multi_label_classification":
            labels = [label for label, logit in zip(self.labels, logits.tolist(), strict=True) if logit > 0]
            return {"labels": labels, "probabilities": _rounded(self.labels, logits.sigmoid())}
        return _likeliest("label", self.labels, logits)


class AnswerChooser:
    """
    Chooses an answer to a question about pictures, or to a question alone.

    Args:
        name, loading: see `load_head`.
        question, choices: the question, and the answers to choose from.
    """

    def __init__(self, name: str, question: str, choices: list[str], **loading: Any) -> None:
        self.question, self.choices = question, choices
        self.model, self.processor = load_head(
            FusionCaptionerForMultipleChoice, name, trained_to="choose answers", **loading
        )

    @torch.inference_mode()
    def predict(self, pictures: Pictures) -> list[dict[str, Any]]:
        count = len(pictures) if pictures else 1
        inputs = self.processor(
            images=pictures, text=[self.question] * count, choices=[self.choices] * count, return_tensors="pt"
        )
        return [
            {"question": self.question} | _likeliest("answer", self.choices, logits)
            for logits in self.model(**inputs, return_dict=True).logits
        ]


class AnswerWriter:
    """
    Answers a question about pictures in words.

    Args:
        name, loading: see `load_head`.
        question: the question.
    """

    def __init__(self, name: str, question: str, **loading: Any) -> None:
        self.question = question
        self.model: Any  # GenerationMixin's types are narrower than what it takes
        self.model, self.processor = load_head(
            FusionCaptionerForConditionalGeneration,
            name,
            trained_to="answer in words, or --choices to choose from",
            **loading,
        )

    def predict(self, pictures: Pictures) -> list[dict[str, Any]]:
        texts = write_answers(self.model, self.processor, self.question, pictures)
        return [{"question": self.question, "answer": text} for text in texts]


@torch.inference_mode()
def write_answers(model: Any, processor: Any, question: str, pictures: Pictures) -> list[str]:
    """The answers of a captioner to a question, one for each picture."""
    chat = [{"role": "user", "content": question}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=pictures, text=prompt, return_tensors="pt").to(model.device)
    generated = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(generated, skip_special_tokens=True)]


def print_predictions(predictor: Predictor, images: Sequence[str], batch_size: int, done: str) -> int:
    """
    Print a JSON line per image, or one where there is no image.

    Args:
        images: files and URLs.
        done: what is done to images, for the summary.

    Returns:
        the exit status, see [`Summary.exit_status`].
    """
    if not images:
        print_json(predictor.predict(None)[0])
        return 0
    settings = predictor.processor.image_processor.to_dict()
    batches = ImageBatches(images, range(len(images)), batch_size, settings, launched_process())
    for _, names, pictures in batches:
        for name, entry in zip(names, predictor.predict(pictures), strict=True):
            print_json({"image": name} | entry)
    return Summary(len(images), batches.bad).exit_status(done)


def _likeliest(key: str, names: list[str], logits: torch.Tensor) -> dict[str, Any]:
    """The likeliest of `names` under `key`, and the probability of each."""
    return {key: names[int(logits.argmax())], "probabilities": _rounded(names, logits.softmax(dim=0))}


def _rounded(names: list[str], values: torch.Tensor) -> dict[str, float]:
    return {name: round(value, 4) for name, value in zip(names, values.tolist(), strict=True)}

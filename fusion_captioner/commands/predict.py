"""`fusion-captioner classify` and `answer`: images and a text in, JSON lines out; one bad image does not stop the others."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from fusion_captioner.checkpoints.loading import load_head
from fusion_captioner.data.image_files import find_images
from fusion_captioner.inference.image_batches import ImageBatches, Tally
from fusion_captioner.inference.launched_process import launched_process
from fusion_captioner.inference.progress import Progress
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.multiple_choice import FusionCaptionerForMultipleChoice
from fusion_captioner.sequence_classification import FusionCaptionerForSequenceClassification

# What is printed of a batch of pictures, a line each; of None, one line
Lines = Callable[[list[Image.Image] | None], list[dict[str, Any]]]


def classify(options: argparse.Namespace) -> int:
    """Run the command; returns 0, or 1 if some of the images could not be read, or 2 if none could."""
    if options.text is not None and not options.text.strip():
        raise ValueError(f"--text ({options.text!r}) is empty; give a text, or leave it out.")
    if not options.images and options.text is None:
        raise ValueError("there is neither IMAGE nor --text; give one of them, or both.")
    images = _images(options)
    model, processor = load_head(
        FusionCaptionerForSequenceClassification, options.model, options.revision, trained_to="classify"
    )
    names = [name for _, name in sorted(model.config.id2label.items())]  # type: ignore[union-attr]

    def inputs(pictures: list[Image.Image] | None) -> Any:
        if options.text is None:
            return processor(images=pictures, return_tensors="pt")
        texts = [options.text] * (len(pictures) if pictures else 1)
        return processor(images=pictures, text=texts, add_eos=True, truncation=True, return_tensors="pt")

    def found(logits: torch.Tensor) -> dict[str, Any]:
        if model.config.problem_type == "regression":
            return {name: round(value, 4) for name, value in zip(names, logits.tolist(), strict=True)}
        if model.config.problem_type == "multi_label_classification":
            labels = [name for name, logit in zip(names, logits.tolist(), strict=True) if logit > 0]
            return {"labels": labels, "probabilities": _rounded(names, logits.sigmoid())}
        return _likeliest("label", names, logits)

    about = {} if options.text is None else {"text": options.text}
    return _predict(options, processor, images, _lines(model, inputs, found, about), "classified")


def answer(options: argparse.Namespace) -> int:
    """Run the command; returns 0, or 1 if some of the images could not be read, or 2 if none could."""
    if not options.question.strip():
        raise ValueError(f"--question ({options.question!r}) is empty; ask something.")
    if options.choices is None:
        return _answer_in_words(options)
    if (
        len(options.choices) < 2
        or len(set(options.choices)) < len(options.choices)
        or not all(map(str.strip, options.choices))
    ):
        raise ValueError(f"--choices ({', '.join(map(repr, options.choices))}) must be two different answers or more.")
    images = _images(options)
    model, processor = load_head(
        FusionCaptionerForMultipleChoice, options.model, options.revision, trained_to="choose answers"
    )

    def inputs(pictures: list[Image.Image] | None) -> Any:
        count = len(pictures) if pictures else 1
        return processor(
            images=pictures, text=[options.question] * count, choices=[options.choices] * count, return_tensors="pt"
        )

    def found(logits: torch.Tensor) -> dict[str, Any]:
        return _likeliest("answer", options.choices, logits)

    about = {"question": options.question}
    return _predict(options, processor, images, _lines(model, inputs, found, about), "looked at")


def _answer_in_words(options: argparse.Namespace) -> int:
    images = _images(options)
    if not images:
        raise ValueError("there is no IMAGE that the question is about; give one, or --choices to choose from.")
    model: Any  # GenerationMixin's types are narrower than what it takes
    model, processor = load_head(
        FusionCaptionerForConditionalGeneration,
        options.model,
        options.revision,
        trained_to="answer in words, or --choices to choose from",
    )
    chat = [{"role": "user", "content": options.question}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)

    def lines(pictures: list[Image.Image] | None) -> list[dict[str, Any]]:
        inputs = processor(images=pictures, text=prompt, return_tensors="pt")
        generated = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(generated, skip_special_tokens=True)
        return [{"question": options.question, "answer": text.strip()} for text in texts]

    return _predict(options, processor, images, lines, "looked at")


def _images(options: argparse.Namespace) -> list[str]:
    if options.batch_size < 1:
        raise ValueError(f"--batch-size ({options.batch_size}) must be at least 1.")
    return list(find_images(options.images))


def _likeliest(key: str, names: list[str], logits: torch.Tensor) -> dict[str, Any]:
    """The likeliest of `names` under `key`, and how likely each is."""
    return {key: names[int(logits.argmax())], "probabilities": _rounded(names, logits.softmax(dim=0))}


def _rounded(names: list[str], probabilities: torch.Tensor) -> dict[str, float]:
    return {name: round(value, 4) for name, value in zip(names, probabilities.tolist(), strict=True)}


def _lines(
    model: Any,
    inputs: Callable[[list[Image.Image] | None], Any],
    found: Callable[[torch.Tensor], dict[str, Any]],
    about: dict[str, str],
) -> Lines:
    """Lines of `about`, and of what is `found` in a row of the model's logits."""

    def lines(pictures: list[Image.Image] | None) -> list[dict[str, Any]]:
        return [about | found(logits) for logits in model(**inputs(pictures)).logits]

    return lines


@torch.inference_mode()
def _predict(options: argparse.Namespace, processor: Any, images: list[str], lines: Lines, done: str) -> int:
    """Print a line an image, or one if there is none."""
    if not images:
        print(json.dumps(lines(None)[0], ensure_ascii=False), flush=True)
        return 0
    process = launched_process()
    places = range(len(images))
    with Progress(len(images), 0, show=len(images) > 1) as progress:
        batches = ImageBatches(
            images, places, options.batch_size, processor.image_processor.to_dict(), progress, process
        )
        for _, read, pictures in batches:
            for name, line in zip(read, lines(pictures), strict=True):
                progress.print(json.dumps({"image": name} | line, ensure_ascii=False), sys.stdout)
    return Tally(len(images), batches.bad).exit_status(done)

"""The model card of a trained model of any task: what it is, how to use it, its scores, how it was trained, its
limits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerState

from fusion_captioner import __version__

BODY = """\
# {title}

{text.about}, trained with fusion-captioner {version}. Fusion: {config.fusion_type}; image encoder:
{config.vision_config.model_type}; causal text encoder: {config.text_encoder_type}{decoder}.

## Use

```python
from transformers import {text.auto_class}, AutoProcessor

name = "{repository}"
model = {text.auto_class}.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
{text.usage}
```

`trust_remote_code=True` runs the Python files of this repository: read them, and pin the commit that you have read
with `revision=`. Where the package fusion-captioner is installed, `import fusion_captioner` makes `trust_remote_code`
unnecessary.

## Scores

{scores}

## Training

{training}

## Limits

{text.limits}
"""

GENERATES_TEXT = "AutoModelForImageTextToText"
# What an evaluation logs besides scores.
NO_SCORES = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclass(frozen=True)
class CardText:
    """
    What a task writes into the cards of its models.

    Args:
        pipeline_tag: the Hub's name of the task.
        tags: further tags.
        metrics: score → the Hub's name of it.
        auto_class: the class of transformers that loads the model.
        about: the first words of the card.
        usage: Python code that follows the loading of model and processor.
        limits: what the model is not good for.
        task_type, task_name: the task of the results in the card's metadata; by default `pipeline_tag` without a name.
    """

    pipeline_tag: str
    tags: tuple[str, ...]
    metrics: dict[str, str]
    auto_class: str
    about: str
    usage: str
    limits: str
    task_type: str | None = None
    task_name: str | None = None


@dataclass(frozen=True)
class TrainingRecord:
    """
    What a card says of a training run and its trainer does not know.

    Args:
        data: name of the data set, as on the Hub, or of its folder; or several names: the scores are those of the
            first.
        train_split, eval_split: the splits, several joined by `+`, that the model was trained and scored on.
        vision_model: name of the pretrained image encoder; None: it began with random weights.
        command: the command that made the model.
        computes_in: type of the matrix products in training.
    """

    data: str | list[str] | None = None
    train_split: str = "train"
    eval_split: str | None = "val"
    vision_model: str | None = None
    command: str | None = None
    computes_in: str | None = None


@dataclass(frozen=True)
class TrainedModel:
    """
    The model that a card describes.

    Args:
        repository: its name on the Hub, or of its folder.
        config: its config.
        state: the trainer's state, whose log has the scores.
        is_best: whether the model is the best checkpoint, and not the last.
        record: where it comes from.
        score_setting: how it was scored, such as ", 3 beams".
        score_signature: signature of the scores, or "".
    """

    repository: str
    config: Any  # FusionCaptionerConfig; transformers types models' configs more widely
    state: TrainerState
    is_best: bool
    record: TrainingRecord
    score_setting: str = ""
    score_signature: str = ""

    def scores(self) -> dict[str, float]:
        """The logged scores of the weights that are saved: of an evaluation after training, else of the best
        checkpoint where that was loaded, else of the last evaluation; empty without any."""
        log = self.state.log_history
        evaluations = [entry for entry in log if any(name.startswith("eval_") for name in entry)]
        if not evaluations:
            return {}
        chosen = evaluations[-1]
        if log[-1] is not chosen and self.is_best:
            chosen = next((entry for entry in evaluations if entry["step"] == self.state.best_global_step), chosen)
        named = {name.removeprefix("eval_"): value for name, value in chosen.items() if name.startswith("eval_")}
        return {name: value for name, value in named.items() if name not in NO_SCORES}


def build_model_card(
    model: TrainedModel,
    text: CardText,
    *,
    name: str | None = None,
    data: str | list[str] | None = None,
    hub_data: str | list[str] | None = None,
    language: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    base_model: str | None = None,
) -> ModelCard:
    """
    The card of a trained model.

    Args:
        model: the model, its scores and its origin.
        text: the part of the card that the task writes.
        name: name of the model; by default that of its repository or folder.
        data: name of the data; by default that of the record.
        hub_data: Hub names of the data; by default `data`.
        language, license, base_model: metadata of the card.
        tags: metadata, in addition to the tags of the task.

    Returns:
        the card. Without a name of the data it has no `model-index`: scores mean nothing without their data.
    """
    title = name or model.repository.split("/")[-1]
    data_names = _listed(data) or _listed(model.record.data)
    scores = model.scores()
    results = [
        EvalResult(
            task_type=text.task_type or text.pipeline_tag,
            task_name=text.task_name,
            dataset_type=data_name,
            dataset_name=data_name,
            dataset_split=model.record.eval_split,
            metric_type=hub_name,
            metric_name=metric,
            metric_value=round(scores[metric], 4),
        )
        for data_name in data_names[:1]
        for metric, hub_name in text.metrics.items()
        if metric in scores
    ]
    metadata = ModelCardData(
        model_name=title,
        library_name="transformers",
        pipeline_tag=text.pipeline_tag,
        tags=[*text.tags, "fusion-captioner", *_listed(tags)],
        datasets=_listed(hub_data) or data_names or None,
        metrics=[hub_name for metric, hub_name in text.metrics.items() if metric in scores] or None,
        eval_results=results or None,
        language=language,
        license=license,
        base_model=base_model,
    )
    body = BODY.format(
        title=title,
        repository=model.repository,
        version=__version__,
        text=text,
        config=model.config,
        decoder=f"; decoder: {model.config.decoder_type}" if text.auto_class == GENERATES_TEXT else "",
        scores=_score_table(model, scores, data_names),
        training=_training_lines(model, data_names),
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def _score_table(model: TrainedModel, scores: dict[str, float], data_names: list[str]) -> str:
    if not scores:
        return "Not scored."
    of_data = f" of {data_names[0]}" if data_names else ""
    lines = [
        f"On the split `{model.record.eval_split}`{of_data}{model.score_setting}:",
        "",
        "| score | |",
        "|---|---|",
    ]
    lines += [f"| {name.replace('_', ' ')} | {score:.4f} |" for name, score in scores.items()]
    if model.score_signature:
        lines += ["", f"Signature: `{model.score_signature}`"]
    return "\n".join(lines)


def _training_lines(model: TrainedModel, data_names: list[str]) -> str:
    record, state = model.record, model.state
    lines = []
    if data_names:
        data = ", ".join(data_names)
        lines.append(f"- data: {data}, split `{record.train_split}`; the terms of the data apply to this model too")
    if record.vision_model is not None:
        lines.append(f"- image encoder: began as {record.vision_model}, whose terms apply to this model too")
    best = f"; the best checkpoint is that of step {state.best_global_step}" if state.best_global_step else ""
    lines.append(f"- {state.epoch or 0:g} epochs, {state.global_step} optimiser steps{best}")
    if record.computes_in is not None:
        lines.append(f"- computed in {record.computes_in}")
    if record.command is not None:
        lines.append(f"- command: `{record.command}`")
    return "\n".join(lines)


def public_name(source: str) -> str:
    """A Hub repository's name unchanged; of a folder only its own name, since its path is private."""
    return Path(source).resolve().name if Path(source).exists() else source


def _listed(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])

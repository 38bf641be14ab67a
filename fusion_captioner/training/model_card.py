"""The model card of a trained captioner: what it is, what it was trained on, how well it does, how it was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fusion_captioner import __version__
from fusion_captioner.data.arguments import PromptDataArguments
from fusion_captioner.training.arguments import HeadRunArguments, RunArguments

if TYPE_CHECKING:
    from fusion_captioner.training.head_trainer import HeadTrainer
    from fusion_captioner.training.trainer import FusionCaptionerTrainer

# The scores that go into the card's metadata, by the Hub's names
HUB_METRICS = {"CIDEr": "cider", "BLEU-4": "bleu", "ROUGE-L": "rouge", "METEOR-exact-stem": "meteor"}
SCORES = ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "METEOR-exact-stem")

BODY = """\
# {title}

An image captioner by cross-modal fusion, trained with fusion-captioner {version}. Fusion: {config.fusion_type}; image
encoder: {image_encoder}; causal text encoder: {config.text_encoder_type}; decoder: {config.decoder_type}.

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

name = "{name}"
model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
inputs = processor(images="photo.jpg", return_tensors="pt")
generated = model.generate(**inputs, num_beams=3)
print(processor.batch_decode(generated, skip_special_tokens=True)[0])
```

`trust_remote_code=True` runs the Python files of this repository: read them, and pin what you have read with
`revision=` and its commit. Where the package fusion-captioner is installed, `import fusion_captioner` makes
`trust_remote_code` unnecessary.

## Scores

{scores}

## Training

{training}

## Limits

It describes what its training data describes, in their words, and errs with confidence: counts, colours, text in
pictures and anything rare are often wrong. Do not use it to identify people or where an error does harm.
"""


@dataclass(frozen=True)
class TrainingRecord:
    """
    What a card tells of a run beside what its trainer knows.

    Args:
        data: name of the data set, as on the Hub, or of its folder; or several, the scores being those of the first.
        train_split, eval_split: its splits, several joined by `+`, that the model was trained and scored on.
        vision_model: name of the pretrained image encoder; None: it began with random weights.
        command: that made the model.
    """

    data: str | list[str] | None = None
    train_split: str = "train"
    eval_split: str | None = "val"
    vision_model: str | None = None
    command: str | None = None

    @classmethod
    def of_run(cls, run: RunArguments | HeadRunArguments, command: str) -> TrainingRecord:
        """The record of a run of `fusion-captioner train`."""
        sources = run.data.splits or {}
        train, evaluated = run.data.train_split, run.data.eval_split
        more = run.data.more_train_sources if isinstance(run, RunArguments) else []
        if isinstance(run.data, PromptDataArguments):
            more = [] if run.data.caption_source is None else [run.data.caption_source]
            if run.data.folds and evaluated is not None:
                held_out = f"fold {run.data.fold} of {run.data.folds}"
                train, evaluated = f"{sources.get(train, train)} without {held_out}", f"{held_out} of {train}"
        return cls(
            data=[public_name(source) for source in (run.data.source, *more)],
            train_split=sources.get(train, train),
            eval_split=None if evaluated is None else sources.get(evaluated, evaluated),
            vision_model=None if run.model.vision_model is None else public_name(run.model.vision_model),
            command=command,
        )


def build_model_card(
    trainer: FusionCaptionerTrainer,
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
    The card of the model as `trainer` saves it.

    Args:
        trainer: its `training_record`, model, state and last scores are told.
        name: of the model; by default that of its repository or folder.
        data: name of the data; by default that of the record.
        hub_data: Hub names of the data; by default `data`.
        language, license, base_model: metadata of the card.
        tags: metadata beside the card's own tags.

    Returns:
        the card. Without a name of the data it has no `model-index`: scores say nothing without their data.
    """
    record = trainer.training_record
    folder = Path(str(trainer.args.output_dir)).resolve().name
    repository = trainer.hub_model_id or trainer.args.hub_model_id or folder
    title = name or repository.split("/")[-1]
    data_names = listed(data) or listed(record.data)
    scores = final_scores(trainer)
    metadata = ModelCardData(
        model_name=title,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["image-captioning", "fusion-captioner", *listed(tags)],
        datasets=listed(hub_data) or data_names or None,
        metrics=[HUB_METRICS[metric] for metric in HUB_METRICS if metric in scores] or None,
        eval_results=_eval_results(scores, data_names, record.eval_split) or None,
        language=language,
        license=license,
        base_model=base_model,
    )
    config = trainer.model.config
    body = BODY.format(
        title=title,
        name=repository,
        version=__version__,
        config=config,
        image_encoder=config.vision_config.model_type,
        scores=_score_table(trainer, scores, data_names),
        training=training_lines(trainer, data_names),
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def final_scores(trainer: FusionCaptionerTrainer) -> dict[str, float]:
    """Scores of the weights that `trainer` holds, by name; empty without any."""
    evaluation = final_evaluation(trainer, "eval_CIDEr")
    return {name: evaluation[f"eval_{name}"] for name in SCORES if f"eval_{name}" in evaluation}


def final_evaluation(trainer: HeadTrainer, metric: str) -> dict[str, float]:
    """What was logged of the weights that `trainer` holds: of an evaluation after training, else of the best checkpoint
    where that was loaded, else of the last evaluation; empty without any.

    Args:
        metric: name that every evaluation's entry of the log has.
    """
    log = trainer.state.log_history
    evaluations = [entry for entry in log if metric in entry]
    if not evaluations:
        return {}
    chosen = evaluations[-1]
    if log[-1] is not chosen and trainer.args.load_best_model_at_end:
        chosen = next((entry for entry in evaluations if entry["step"] == trainer.state.best_global_step), chosen)
    return chosen


def _eval_results(scores: dict[str, float], data_names: list[str], split: str | None) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=data_name,
            dataset_name=data_name,
            dataset_split=split,
            metric_type=HUB_METRICS[metric],
            metric_name=metric,
            metric_value=round(scores[metric], 4),
        )
        for data_name in data_names[:1]
        for metric in HUB_METRICS
        if metric in scores
    ]


def _score_table(trainer: FusionCaptionerTrainer, scores: dict[str, float], data_names: list[str]) -> str:
    if not scores:
        return "Not scored."
    of_data = f" of {data_names[0]}" if data_names else ""
    beams = trainer.args.generation_num_beams
    lines = [f"On the split `{trainer.training_record.eval_split}`{of_data}, {beams} beam{'s' * (beams > 1)}:", ""]
    lines += ["| score | |", "|---|---|", *(f"| {metric} | {score:.4f} |" for metric, score in scores.items())]
    if trainer.score_signature:
        lines += ["", f"Signature: `{trainer.score_signature}`"]
    return "\n".join(lines)


def training_lines(trainer: HeadTrainer, data_names: list[str]) -> str:
    """The card's list of how the model was trained."""
    record, state = trainer.training_record, trainer.state
    lines = []
    if data_names:
        data = ", ".join(data_names)
        lines.append(f"- data: {data}, split `{record.train_split}`; the terms of the data hold for this model too")
    if record.vision_model is not None:
        lines.append(f"- image encoder: began as {record.vision_model}, whose terms hold for this model too")
    best = f"; the best checkpoint is that of step {state.best_global_step}" if state.best_global_step else ""
    lines.append(f"- {state.epoch or 0:g} epochs, {state.global_step} optimiser steps{best}")
    if record.command is not None:
        lines.append(f"- command: `{record.command}`")
    return "\n".join(lines)


def public_name(source: str) -> str:
    """A Hub repository's name as it is; of a folder only its own name, since a path is its owner's business."""
    return Path(source).resolve().name if Path(source).exists() else source


def listed(names: str | list[str] | None) -> list[str]:
    """One name, several or none as a list."""
    return [names] if isinstance(names, str) else list(names or [])

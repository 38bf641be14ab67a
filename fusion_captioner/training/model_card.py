"""The model card of a trained captioner: what it is, what it was trained on, how well it does, how it was made."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerState

from fusion_captioner import __version__
from fusion_captioner.training.arguments import RunArguments

HUB_METRICS = {"CIDEr": "cider", "BLEU-4": "bleu", "ROUGE-L": "rouge", "METEOR-exact-stem": "meteor"}

BODY = """\
# {name}

An image captioner by cross-modal fusion ({fusion} fusion, {text_encoder} text encoder, {decoder} decoder,
{vision} image encoder), trained with [fusion-captioner](https://pypi.org/project/fusion-captioner/) {version}.

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
inputs = processor(images="photo.jpg", return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs, num_beams=3), skip_special_tokens=True)[0])
```

`trust_remote_code=True` runs the Python files of this repository: pin them with `revision=` and a commit that you have
read. With `pip install fusion-captioner` and `import fusion_captioner` it is not needed.

## Scores

{scores}

{signature}

## Training

- data: `{data}`, {images}; the terms of the data hold for this model too
- {epochs:g} epochs, {steps} optimiser steps{best}
- command: `{command}`

## Limits

It describes what its training data describes, in their words, and errs with confidence: counts, colours, text in
pictures and anything rare are often wrong. Do not use it to identify people or where an error does harm.
"""


def write_model_card(
    folder: str | Path, run: RunArguments, scores: dict[str, Any], signature: str, command: str, state: TrainerState
) -> None:
    """
    Write `README.md` into `folder`.

    Args:
        scores: as `score_captions` names them; others are left out.
        signature: of the scores; empty without scores.
        command: the command that made the model.
        state: of the finished training.
    """
    folder = Path(folder)
    name = run.training.hub_model_id or folder.name
    data_name = Path(run.data.source or "").name
    results = [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=data_name,
            dataset_name=data_name,
            dataset_split=run.data.eval_split,
            metric_type=HUB_METRICS[metric],
            metric_name=metric,
            metric_value=round(float(scores[metric]), 4),
        )
        for metric in HUB_METRICS
        if metric in scores
    ]
    data = ModelCardData(
        model_name=name.rsplit("/", 1)[-1],
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["image-captioning", "fusion-captioner"],
        datasets=[data_name],
        metrics=[HUB_METRICS[metric] for metric in HUB_METRICS if metric in scores],
        eval_results=results or None,
    )
    rows = [
        f"| {metric} | {scores[metric]:.4f} |"
        for metric in scores
        if metric.startswith(("CIDEr", "BLEU", "ROUGE", "METEOR"))
    ]
    table = "\n".join(
        [
            f"On the split `{run.data.eval_split}`, beam {run.training.generation_num_beams}:",
            "",
            "| score | |",
            "|---|---|",
            *rows,
        ]
    )
    fields = run.model.config
    card = BODY.format(
        name=name,
        fusion=fields.get("fusion_type", "attention"),
        text_encoder=fields.get("text_encoder_type", "lstm"),
        decoder=fields.get("decoder_type", "lstm"),
        vision=Path(run.model.vision_model or "new").name,
        version=__version__,
        scores=table if rows else "Not scored.",
        signature=f"Signature: `{signature}`" if signature else "",
        data=data_name,
        images=f"split `{run.data.train_split}`",
        epochs=state.epoch or 0,
        steps=state.global_step,
        best=f", the best checkpoint at step {state.best_global_step}" if state.best_global_step else "",
        command=command,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{card}").save(folder / "README.md")

"""The model card of the heads other than the captioner's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fusion_captioner import __version__
from fusion_captioner.training.model_card import final_evaluation, listed, training_lines

if TYPE_CHECKING:
    from fusion_captioner.training.head_trainer import HeadTrainer

BODY = """\
# {title}

{about}, trained with fusion-captioner {version}. Fusion: {config.fusion_type}; image encoder: {image_encoder}; causal
text encoder: {config.text_encoder_type}.

## Use

```python
{usage}
```

`trust_remote_code=True` runs the Python files of this repository: read them, and pin what you have read with
`revision=` and its commit. Where the package fusion-captioner is installed, `import fusion_captioner` makes
`trust_remote_code` unnecessary.

## Scores

{scores}

## Training

{training}

## Limits

{limits}
"""

LOADING = """\
from transformers import {auto_class}, AutoProcessor

name = "{name}"
model = {auto_class}.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
"""


@dataclass(frozen=True)
class CardText:
    """
    What a head's card says of its task.

    Args:
        pipeline_tag: the Hub's name of the task.
        tags: further ones.
        metrics: score → the Hub's name of it.
        auto_class: transformers' class that loads the model.
        about: the first words of the card.
        usage: Python code behind the loading of the model.
        limits: what it is not good for.
    """

    pipeline_tag: str
    tags: tuple[str, ...]
    metrics: dict[str, str]
    auto_class: str
    about: str
    usage: str
    limits: str


# What a classifier tells, by its `problem_type`
PREDICTIONS = {
    "single_label_classification": "model.config.id2label[int(logits.argmax())]",
    "multi_label_classification": "[name for number, name in model.config.id2label.items() if logits[number] > 0]",
    "regression": "float(logits)",
}
CARDS = {
    "FusionCaptionerForSequenceClassification": CardText(
        pipeline_tag="image-classification",
        tags=("text-classification", "multimodal"),
        metrics={"accuracy": "accuracy", "macro_f1": "f1", "auroc": "roc_auc", "pearson": "pearsonr", "mae": "mae"},
        auto_class="AutoModelForSequenceClassification",
        about="A classifier of images with texts by cross-modal fusion (labels: {labels})",
        usage="""\
inputs = processor(images="photo.jpg", text="what is said of it", add_eos=True, truncation=True, return_tensors="pt")
logits = model(**inputs).logits[0]  # `text` or `images` may be left out
print({prediction})""",
        limits="It repeats the judgements of whoever labelled its training data, and knows nothing beside these labels. "
        "It is no\nmedical device, and not for decisions about people.",
    ),
    "FusionCaptionerForMultipleChoice": CardText(
        pipeline_tag="visual-question-answering",
        tags=("multiple-choice", "multimodal"),
        metrics={"accuracy": "accuracy"},
        auto_class="AutoModelForMultipleChoice",
        about="A model that chooses among answers to a question about an image, by cross-modal fusion",
        usage="""\
choices = ["a dog", "a cat"]
inputs = processor(images="photo.jpg", text=["what is it?"], choices=[choices], return_tensors="pt")
print(choices[int(model(**inputs).logits.argmax())])""",
        limits="It always chooses, also where no answer is right, and often by what is commonly answered to such a "
        "question: compare\nthe score of the question alone.",
    ),
    "FusionCaptionerForImageTextRetrieval": CardText(
        pipeline_tag="zero-shot-image-classification",
        tags=("image-text-retrieval",),
        metrics={},
        auto_class="AutoModelForZeroShotImageClassification",
        about="Two towers that embed images and texts in one space, and a fused score to re-rank by",
        usage="""\
inputs = processor(images="photo.jpg", text=["a dog", "a cat"], add_eos=True, return_tensors="pt")
print(model(**inputs).logits_per_image.softmax(dim=-1))""",
        limits="It finds what its training data shows and says, in their words, and ranks something first also where "
        "nothing fits.",
    ),
}

CHAT_USAGE = """\
content = [{{"type": "image", "path": "photo.jpg"}}, {{"type": "text", "text": "{text}"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
generated = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(generated, skip_special_tokens=True)[0])"""

# Of the captioner, which is trained to continue prompts of more than one kind.
ANSWER_CARD = CardText(
    pipeline_tag="visual-question-answering",
    tags=("image-text-to-text", "multimodal"),
    metrics={"exact_match": "exact_match", "token_f1": "f1"},
    auto_class="AutoModelForImageTextToText",
    about="A model that answers questions about an image in words, by cross-modal fusion",
    usage=CHAT_USAGE.format(text="what is it?"),
    limits="It always answers, also where the image does not tell, and often by what is commonly answered to such a "
    "question:\ncompare the score of the question alone. It is no medical device: whatever it says of medical images is "
    "for research,\nand never for diagnosis or treatment.",
)
TEXT_CARD = CardText(
    pipeline_tag="image-text-to-text",
    tags=("image-to-text", "multimodal"),
    metrics={"BLEU-4": "bleu", "ROUGE-L": "rouge"},
    auto_class="AutoModelForImageTextToText",
    about="A model that writes a text about an image from a record, by cross-modal fusion",
    usage=CHAT_USAGE.format(text="sex F. age 60."),
    limits="It writes what is commonly written, fluently, also where the image shows nothing of it. It is no medical "
    "device: what it\nwrites of medical images is for research, and never for diagnosis or treatment.",
)


def build_head_card(
    trainer: HeadTrainer,
    text: CardText | None = None,
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
    The card of the model as `trainer` saves it; arguments as of
    [`~fusion_captioner.training.model_card.build_model_card`], and what the card says of the task, by default that of the
    model's class in `CARDS`.
    """
    text = text or CARDS[type(trainer.model).__name__]
    config, record = trainer.model.config, trainer.training_record
    repository = trainer.hub_model_id or trainer.args.hub_model_id or Path(str(trainer.args.output_dir)).resolve().name
    title = name or repository.split("/")[-1]
    data_names = listed(data) or listed(record.data)
    scores = _scores(trainer)
    results = [
        EvalResult(
            task_type=text.pipeline_tag,
            dataset_type=data_name,
            dataset_name=data_name,
            dataset_split=record.eval_split,
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
        tags=[*text.tags, "fusion-captioner", *listed(tags)],
        datasets=listed(hub_data) or data_names or None,
        metrics=[hub_name for metric, hub_name in text.metrics.items() if metric in scores] or None,
        eval_results=results or None,
        language=language,
        license=license,
        base_model=base_model,
    )
    labels = ", ".join(str(name) for _, name in sorted(config.id2label.items()))  # type: ignore[union-attr]
    usage = text.usage.replace("{prediction}", PREDICTIONS[config.problem_type or "single_label_classification"])
    body = BODY.format(
        title=title,
        about=text.about.format(labels=labels),
        version=__version__,
        config=config,
        image_encoder=config.vision_config.model_type,
        usage=LOADING.format(auto_class=text.auto_class, name=repository) + usage,
        scores=_score_table(trainer, scores, data_names),
        training=training_lines(trainer, data_names),
        limits=text.limits,
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def _scores(trainer: HeadTrainer) -> dict[str, float]:
    found = final_evaluation(trainer, f"eval_{str(trainer.args.metric_for_best_model).removeprefix('eval_')}")
    idle = ("loss", "runtime", "samples_per_second", "steps_per_second")
    return {
        name.removeprefix("eval_"): value
        for name, value in found.items()
        if name.startswith("eval_") and name.removeprefix("eval_") not in idle
    }


def _score_table(trainer: HeadTrainer, scores: dict[str, float], data_names: list[str]) -> str:
    if not scores:
        return "Not scored."
    of_data = f" of {data_names[0]}" if data_names else ""
    lines = [f"On the split `{trainer.training_record.eval_split}`{of_data}:", "", "| score | |", "|---|---|"]
    return "\n".join(lines + [f"| {name.replace('_', ' ')} | {score:.4f} |" for name, score in scores.items()])

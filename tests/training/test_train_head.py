"""`train` of the tasks other than captioning, from a YAML file to a scored, saved model."""

import json
from pathlib import Path

from tiny_labels import LABELS, write_head_recipe, write_labelled
from tiny_recipe import MODEL_CONFIG as MODEL
from transformers import AutoModelForSequenceClassification, AutoProcessor

from fusion_captioner.training.train_captioner import train_from_yaml

EVERY_30_STEPS = {"eval_strategy": "steps", "eval_steps": 30, "save_strategy": "steps", "save_steps": 30}


def test_labels_are_learned_from_image_and_text_scored_apart_and_saved(tmp_path: Path) -> None:
    recipe = write_head_recipe(
        tmp_path / "recipe.yaml",
        write_labelled(tmp_path / "data"),
        model={"config": {**MODEL, "initializer_range": 0.3, "dropout": 0.0}},
        data={"labels": LABELS[::-1], "feature_cache": str(tmp_path / "features")},
        training={"max_steps": 60, "per_device_train_batch_size": 16, "ema_decay": 0.5, **EVERY_30_STEPS},
    )
    metrics = train_from_yaml(recipe)
    assert metrics["eval_accuracy"] == metrics["eval_macro_f1"] == metrics["eval_auroc"] == 1
    # either half of the exclusive or says nothing
    assert metrics["eval_image_only_accuracy"] == metrics["eval_text_only_accuracy"] == 0.5

    output = tmp_path / "out"
    model = AutoModelForSequenceClassification.from_pretrained(output)
    processor = AutoProcessor.from_pretrained(output)
    assert model.config.id2label == {0: "other", 1: "same"}
    picture = tmp_path / "data" / "validation" / "0.png"  # dark
    for word, label in (("quiet", "same"), ("loud", "other")):
        inputs = processor(images=str(picture), text=f"a {word} day", add_eos=True, return_tensors="pt")
        assert model.config.id2label[int(model(**inputs).logits.argmax())] == label
    report = json.loads((output / "eval_report.json").read_text())
    assert report["rows"] == 8 and report["image and text"]["labels"]["same"]["support"] == 4
    assert report["text_only"]["auroc_95"][0] < 0.5 < report["text_only"]["auroc_95"][1]
    card = (output / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "| image only accuracy | 0.5000 |" in card
    assert not list(output.rglob("training_args.bin"))

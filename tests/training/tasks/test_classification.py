"""`train` of the tasks other than captioning, from a YAML file to a scored, saved model."""

import json
from pathlib import Path

import pytest
from tiny_labels import LABELS, write_head_recipe, write_labelled
from tiny_recipe import MODEL_CONFIG as MODEL
from transformers import AutoModelForSequenceClassification, AutoProcessor

from fusion_captioner.cli import main
from fusion_captioner.training.train import train_from_yaml

EVERY_30_STEPS = {"eval_strategy": "steps", "eval_steps": 30, "save_strategy": "steps", "save_steps": 30}


@pytest.mark.slow
def test_labels_are_learned_from_image_and_text_scored_apart_and_saved(tmp_path: Path) -> None:
    recipe = write_head_recipe(
        tmp_path / "recipe.yaml",
        write_labelled(tmp_path / "data"),
        model={"config": {**MODEL, "initializer_range": 0.3, "dropout": 0.0}},
        data={"labels": LABELS[::-1], "feature_cache": str(tmp_path / "features")},
        training={"max_steps": 60, "per_device_train_batch_size": 16, "ema_decay": 0.5, **EVERY_30_STEPS}
        | {"early_stopping_patience": 5},
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


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, and in `out` a classifier that knows little."""
    folder = tmp_path_factory.mktemp("classifier")
    recipe = write_head_recipe(
        folder / "recipe.yaml",
        write_labelled(folder / "data", person=["a", "b", "b"]),
        data={"group_column": "person", "class_balance": 1.0, "max_text_length": 8},
        training={"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False},
    )
    train_from_yaml(recipe)
    return folder


def test_evaluate_gives_the_scores_of_training(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["evaluate", str(classifier / "out"), "--source", str(classifier / "data")]
    assert main(flags) == 0
    found = json.loads(capsys.readouterr().out)
    trained = json.loads((classifier / "out" / "eval_report.json").read_text())
    assert {name: found[name] for name in trained} == trained
    assert main([*flags, "--split", "train", "--limit", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 5
    assert main([*flags, "--beams", "1"]) == 2
    assert "--beams is for captioners" in capsys.readouterr().err


def test_classify_labels_images_a_text_or_both(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["classify", "--model", str(classifier / "out")]
    pictures = [str(classifier / "data" / "validation" / name) for name in ("0.png", "1.png")]
    assert main([*flags, *pictures, "--text", "a loud day " * 9]) == 0
    assert main([*flags, *pictures]) == 0
    assert main([*flags, "--text", "a loud day"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line.get("image"), "text" in line) for line in lines] == [
        *[(picture, True) for picture in pictures],
        *[(picture, False) for picture in pictures],
        (None, True),
    ]
    for line in lines:
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-3)
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)
    assert len({line["probabilities"]["same"] for line in lines}) > 1

    assert main(flags) == 2
    assert "neither IMAGE nor --text" in capsys.readouterr().err
    assert main([*flags, *pictures, "--text", " "]) == 2
    assert capsys.readouterr().err == "fusion-captioner: --text (' ') is empty; give a text, or leave it out.\n"


@pytest.mark.slow
def test_a_classifier_goes_on_with_its_labels_in_their_order(classifier: Path, tmp_path: Path) -> None:
    recipe = write_head_recipe(
        tmp_path / "recipe.yaml",
        classifier / "data",
        model={"from_checkpoint": str(classifier / "out"), "config": {}},
        training={"max_steps": 1, "save_strategy": "no", "load_best_model_at_end": False},
    )
    with pytest.raises(ValueError, match=r"`data\.labels` \(\['same', 'other'\]\) differ .*\['other', 'same'\]"):
        train_from_yaml(recipe, ["--data.labels", "[same, other]"])
    with pytest.raises(
        ValueError, match=r"`training\.metric_for_best_model` \('auc'\) .* there are loss, accuracy, macro"
    ):
        train_from_yaml(recipe, ["--data.modalities", "[text]", "--training.metric_for_best_model", "auc"])
    train_from_yaml(recipe, ["--data.modalities", "[text]"])
    report = json.loads((tmp_path / "out" / "eval_report.json").read_text())
    assert list(report) == ["rows", "text"] and list(report["text"]["labels"]) == ["other", "same"]


@pytest.mark.parametrize(
    ("problem_type", "values", "score"),
    [
        ("multi_label_classification", [["dark"], ["bright"], ["dark", "loud"], ["bright", "loud"]], "macro_f1"),
        ("regression", [0.0, 1.0, 2.0, 3.0], "pearson"),
    ],
)
@pytest.mark.slow
def test_several_labels_and_values_are_learned_scored_and_told(
    problem_type: str, values: list, score: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_head_recipe(
        tmp_path / "recipe.yaml",
        write_labelled(tmp_path / "data", seen=values),
        model={"config": {**MODEL, "initializer_range": 0.3, "dropout": 0.0}},
        data={"label_column": "seen", "problem_type": problem_type, "feature_cache": str(tmp_path / "features")},
        training={"max_steps": 60, "per_device_train_batch_size": 16, **EVERY_30_STEPS},
    )
    metrics = train_from_yaml(recipe)
    assert metrics[f"eval_{score}"] > 0.95
    assert max(metrics[f"eval_image_only_{score}"], metrics[f"eval_text_only_{score}"]) < 0.95
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["best_metric"] == max(entry.get(f"eval_{score}", -1) for entry in state["log_history"])
    capsys.readouterr()

    output = str(tmp_path / "out")
    assert main(["evaluate", output, "--source", str(tmp_path / "data")]) == 0
    found = json.loads(capsys.readouterr().out)["image and text"]
    assert found[score] == pytest.approx(metrics[f"eval_{score}"], abs=1e-3)
    picture = str(tmp_path / "data" / "validation" / "1.png")  # bright
    for word, expected in (("quiet", values[1]), ("loud", values[3])):
        assert main(["classify", picture, "--text", f"a {word} day", "--model", output]) == 0
        line = json.loads(capsys.readouterr().out)
        if problem_type == "regression":
            assert line["seen"] == pytest.approx(expected, abs=0.7)
        else:
            assert sorted(line["labels"]) == sorted(expected)
            assert [name for name, value in line["probabilities"].items() if value > 0.5] == line["labels"]
    told = {"regression": "print(float(logits))", "multi_label_classification": "if logits[number] > 0])"}
    assert told[problem_type] in (tmp_path / "out" / "README.md").read_text()

    # another kind of label is not that of its outputs
    flags = ["--model.from_checkpoint", output, "--model.config", "{}"]
    flags += ["--training.output_dir", str(tmp_path / "other")]
    with pytest.raises(ValueError, match=rf"'single_label_classification'\) differs from .* '{problem_type}'"):
        train_from_yaml(recipe, [*flags, "--data.problem_type", "single_label_classification"])

"""The task `prompted`: one captioner that answers and captions, reports from records, and folds by image."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_captioner import tiny_model
from tiny_labels import LIGHTS, write_head_recipe
from tiny_recipe import MODEL_CONFIG
from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion_captioner.cli import main
from fusion_captioner.data.arguments import PromptDataArguments
from fusion_captioner.data.prompted_texts import fold_of_images, load_prompted_texts, render_prompts
from fusion_captioner.training.train import train_from_yaml

TIMES = ["night", "day"]
QUICK = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def write_rows(root: Path, train: int = 8, validation: int = 4, captions: bool = False, **fields) -> Path:
    """Dark and bright pictures with two questions each, or with a caption; `fields` are further ones of each line."""
    for split, count in (("train", train), ("validation", validation)):
        folder = root / split
        folder.mkdir(parents=True)
        lines = []
        for number in range(count):
            light = number % 2
            # of other sizes for the captions, so that they are not the same files
            Image.new("RGB", (24 + 4 * captions, 20), (LIGHTS[light],) * 3).save(folder / f"{number}.png")
            line = {"file_name": f"{number}.png"} | fields
            if captions:
                lines.append(line | {"text": f"a picture of the {TIMES[light]}"})
            else:
                lines.append(line | {"question": "what is it?", "answer": TIMES[light].title(), "answer_type": "OPEN"})
                answer = ["Yes.", "No."][light]
                lines.append(line | {"question": "is it dark?", "answer": answer, "answer_type": "CLOSED"})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def loaded(root: Path, *splits: str, learned: str | None = None, **fields):
    return load_prompted_texts(
        PromptDataArguments(source=str(root), **fields), dict.fromkeys(splits or ("train",)), learned
    )


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A folder with `questions`, `captions` and in `out` what was trained on both, and its scores."""
    folder = tmp_path_factory.mktemp("assistant")
    recipe = write_head_recipe(
        folder / "recipe.yaml",
        write_rows(folder / "questions"),
        task="prompted",
        model={
            "image_size": 32,
            "config": {
                **MODEL_CONFIG,
                "hidden_size": 32,
                "initializer_range": 0.3,
                "dropout": 0.0,
                "label_smoothing": 0.0,
                "modality_dropout": 0.1,
            },
        },
        data={
            "answer_type_column": "answer_type",
            "caption_source": str(write_rows(folder / "captions", captions=True)),
            "max_turns": 2,
            "feature_cache": str(folder / "features"),
        },
        training={"max_steps": 80, "per_device_train_batch_size": 12, "lr_scheduler_type": "constant", **QUICK},
    )
    return folder, train_from_yaml(recipe)


@pytest.mark.slow
def test_questions_and_captions_are_learned_together_and_scored_apart(assistant) -> None:
    folder, metrics = assistant
    assert metrics["eval_exact_match"] == metrics["eval_token_f1"] == 1
    assert metrics["eval_closed_exact_match"] == metrics["eval_open_exact_match"] == 1
    assert metrics["eval_captions_BLEU-4"] == pytest.approx(1)
    # one answer to all pictures is right of half of them
    assert metrics["eval_question_only_closed_exact_match"] == 0.5
    report = json.loads((folder / "out" / "eval_report.json").read_text())
    assert [report[name] for name in ("questions", "closed", "open")] == [8, 4, 4]
    assert report["question and image"]["exact_match"] == 1 and report["captions"]["CIDEr"] > 0
    lines = [json.loads(line) for line in (folder / "out" / "eval_texts.jsonl").read_text().splitlines()]
    assert lines[0] == {"prompt": "question: what is it? answer:", "generated": "night", "right": "Night"}
    card = (folder / "out" / "README.md").read_text()
    assert "pipeline_tag: visual-question-answering" in card and "no medical device" in card
    assert "| question only exact match |" in card and "data: questions, captions," in card


def test_the_prompt_alone_tells_a_caption_an_answer_and_a_conversation_apart(assistant, capsys) -> None:
    folder, _ = assistant
    output, picture = str(folder / "out"), str(folder / "questions" / "validation" / "0.png")  # dark
    capsys.readouterr()
    assert main(["caption", picture, "--model", output, "--beams", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["caption"] == "a picture of the night"
    bright = str(folder / "questions" / "validation" / "1.png")
    assert main(["answer", picture, bright, "--question", "Is it dark?", "--model", output]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        {"image": image, "question": "Is it dark?", "answer": answer}
        for image, answer in ((picture, "yes"), (bright, "no"))
    ]

    model, processor = AutoModelForImageTextToText.from_pretrained(output), AutoProcessor.from_pretrained(output)
    turns = [
        ("user", [{"type": "image", "path": picture}, {"type": "text", "text": "what is it?"}]),
        ("assistant", "night"),
        ("user", "is it dark?"),
    ]

    def said(chat) -> str:
        inputs = processor.apply_chat_template(
            [{"role": role, "content": content} for role, content in chat],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        generated = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        return processor.batch_decode(generated, skip_special_tokens=True)[0]

    assert [said(turns[:1]), said(turns)] == ["night", "yes"]


@pytest.mark.slow
def test_evaluate_scores_answers_as_training_did_and_captions_on_demand(assistant, capsys) -> None:
    folder, _ = assistant
    output = str(folder / "out")
    capsys.readouterr()
    assert main(["evaluate", output, "--source", str(folder / "questions")]) == 0
    found = json.loads(capsys.readouterr().out)
    trained = json.loads((folder / "out" / "eval_report.json").read_text())
    assert {name: found.get(name) for name in trained} == trained | {"captions": None}
    captions = str(folder / "captions")
    assert main(["evaluate", output, "--source", captions, "--beams", "1", "--as-captioner"]) == 0
    assert json.loads(capsys.readouterr().out)["greedy"]["BLEU-4"] == pytest.approx(1, abs=1e-3)
    assert main(["evaluate", output, "--source", captions, "--beams", "1"]) == 2
    assert "--beams is for captioners" in capsys.readouterr().err
    assert main(["answer", "--question", "what?", "--model", output]) == 2
    assert "there is no IMAGE" in capsys.readouterr().err


def test_reports_are_written_from_records(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", 4, 4, captions=True, age="60", view="")
    lines = (data / "train" / "metadata.jsonl").read_text().splitlines()
    (data / "train" / "metadata.jsonl").write_text(
        "\n".join([*lines, json.dumps(json.loads(lines[0]) | {"text": " "})])
    )
    recipe = write_head_recipe(
        tmp_path / "recipe.yaml",
        data,
        task="prompted",
        data={
            "text_template": ["age {age}.", "view {view}."],
            "answer_column": "text",
            "metric_tokenizer": "characters",
        },
        training={"max_steps": 1, "metric_for_best_model": "ROUGE-L", **QUICK},
    )
    metrics = train_from_yaml(recipe)
    assert {f"eval_{name}ROUGE-L" for name in ("", "image_only_", "text_only_")} <= set(metrics)
    assert "eval_exact_match" not in metrics
    report = json.loads((tmp_path / "out" / "eval_report.json").read_text())
    assert report["texts"] == 4 and report["image and text"]["BLEU-4"] == metrics["eval_BLEU-4"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card and "never for diagnosis" in card
    assert "tokenizer=characters" in card

    rows = loaded(data, text_template=["age {age}.", "view {view}."], answer_column="text")["train"]
    assert len(rows) == 4  # what has no report is left out
    assert render_prompts(rows["turns"][:1]) == ["question: age 60. answer:"]
    image_alone = loaded(data, modalities=["image"], text_template=["age {age}."], answer_column="text")["train"]
    assert render_prompts(image_alone["turns"][:1]) == [""]


def test_a_question_alone_is_trained_without_any_image(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", 2, 2)
    recipe = write_head_recipe(
        tmp_path / "recipe.yaml",
        data,
        task="prompted",
        data={"modalities": ["text"]},
        training={"max_steps": 1, **QUICK},
    )
    for picture in data.rglob("*.png"):
        picture.write_bytes(picture.read_bytes()[:50])  # a header and nothing behind it
    metrics = train_from_yaml(recipe)
    report = json.loads((tmp_path / "out" / "eval_report.json").read_text())
    assert list(report) == ["questions", "question"] and "eval_question_only_exact_match" not in metrics


def test_no_image_is_in_two_folds_and_each_is_held_out_once(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", 7, 1)
    held_out = []
    for fold in range(3):
        parts = loaded(data, "train", "val", folds=3, fold=fold)
        train, val = set(parts["train"]["image_id"]), set(parts["val"]["image_id"])
        assert not train & val and len(train | val) == 7 and len(val) in (2, 3)
        assert len(parts["train"]) + len(parts["val"]) == 14
        held_out += sorted(val)
        again = loaded(data, "val", folds=3, fold=fold)["val"]  # as `evaluate` loads it
        assert again["image_id"] == parts["val"]["image_id"]
    assert len(held_out) == len(set(held_out)) == 7
    with pytest.raises(ValueError, match=r"`data\.folds` \(9\) are more than the 2 images"):
        fold_of_images(["a", "a", "b"], 9)


def test_turns_before_a_question_are_others_of_its_image_and_only_in_training(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", 8, 2)
    parts = loaded(data, "train", "val", learned="train", max_turns=3)
    assert {len(turns) for turns in parts["train"]["turns"]} == {1, 3}  # there is but one other question
    assert {len(turns) for turns in parts["val"]["turns"]} == {1}
    row = next(row for row in parts["train"] if len(row["turns"]) == 3 and row["turns"][-1] == "is it dark?")
    time = "Night" if row["captions"] == ["Yes."] else "Day"
    assert row["turns"] == ["what is it?", time, "is it dark?"]
    assert render_prompts([row["turns"]]) == [f"question: what is it? answer: {time} question: is it dark? answer:"]


def test_right_choices_are_answers(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", 1, 1, choices=["In a park.", "At  sea."], label=1)
    assert loaded(data, choices_column="choices")["train"]["captions"] == [["At sea."]] * 2
    path = data / "train" / "metadata.jsonl"
    path.write_text(path.read_text().replace('"label": 1', '"label": 2'))
    with pytest.raises(ValueError, match=r"line 1: the label 2 is the number of none of its 2 choices"):
        loaded(data, choices_column="choices")
    path.write_text(path.read_text().replace('"label": 2', '"label": -100'))  # not known
    with pytest.raises(ValueError, match="no row of the split 'train' has an answer"):
        loaded(data, choices_column="choices")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"question_column": "q", "text_template": ["{a}"]}, "are both set"),
        ({"answer_column": "a", "choices_column": "c"}, "are both set"),
        ({"text_template": []}, "at least one"),
        ({"folds": 1}, r"`data\.folds` \(1\) must be at least 2"),
        ({"folds": 5, "fold": 5}, r"`data\.fold` \(5\) must be a number below"),
        ({"fold": 1}, r"`data\.fold` \(1\)"),
        ({"max_turns": 0}, r"`data\.max_turns` \(0\)"),
        ({"max_turns": 2, "modalities": ["image"]}, "is for prompts"),
    ],
)
def test_settings_that_do_not_fit_are_named(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PromptDataArguments(source="data", **fields)


def test_a_hidden_image_is_what_modality_dropout_shows() -> None:
    model = tiny_model(modality_dropout=0.99, initializer_range=0.3).train()
    inputs = {"input_ids": torch.tensor([[1, 4, 5]] * 2), "labels": torch.tensor([[-100, 4, 5]] * 2)}
    torch.manual_seed(0)  # neither of the two is shown
    loss = model(**inputs, pixel_values=torch.randn(2, 3, 32, 32)).loss
    model.eval()
    assert torch.allclose(loss, model(**inputs, image_hidden_states=model.hidden_image(2)).loss, atol=1e-6)
    assert not torch.allclose(loss, model(**inputs, pixel_values=torch.randn(2, 3, 32, 32)).loss, atol=1e-4)

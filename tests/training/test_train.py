"""`train` from a YAML file to a scored, saved captioner: which data it learns from, and that it does so again."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_captioner import noise, tiny_processor
from tiny_labels import write_head_recipe, write_labelled, write_questions
from tiny_recipe import MODEL_CONFIG, log_history, losses, write_data, write_recipe
from transformers import TrainerCallback

from fusion_captioner.cli import main
from fusion_captioner.data import caption_datasets
from fusion_captioner.data.arguments import DataArguments
from fusion_captioner.data.caption_datasets import load_splits
from fusion_captioner.training import base_trainer
from fusion_captioner.training.arguments import read_run_arguments
from fusion_captioner.training.callbacks import StopEarly
from fusion_captioner.training.tasks import captioning
from fusion_captioner.training.train import train_from_yaml
from fusion_captioner.training.trainer import FusionCaptionerTrainer


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[FusionCaptionerTrainer]:
    """The trainers of the runs of a test, in order."""
    made: list[FusionCaptionerTrainer] = []

    class Kept(FusionCaptionerTrainer):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            made.append(self)

    monkeypatch.setattr(captioning, "FusionCaptionerTrainer", Kept)
    return made


@pytest.mark.parametrize(
    ("splits", "images"),
    [(None, 5), ({"train": "train", "val": "val"}, 3), ({"train": "restval", "val": "val"}, 2)],
)
def test_restval_is_part_of_train_unless_the_recipe_says_otherwise(
    tmp_path: Path, trainers: list, splits: dict | None, images: int
) -> None:
    data = write_data(tmp_path / "data", train=3, restval=2, val=2)
    recipe = write_recipe(tmp_path / "recipe.yaml", data, data={"splits": splits}, training={"max_steps": 1})
    metrics = train_from_yaml(recipe)
    assert len(trainers[0].train_dataset) == images
    assert metrics["eval_CIDEr"] >= 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"split `{'train' if splits is None else splits['train']}`" in card


def test_concepts_are_chosen_from_the_captions_and_kept_by_what_starts_from_it(tmp_path: Path, trainers: list) -> None:
    things = ["dog", "cat", "bird", "horse", "boat", "train"]
    data = write_data(tmp_path / "data", train=12, val=1)
    annotations = json.loads((data / "dataset_flickr8k.json").read_text())
    for number, image in enumerate(annotations["images"]):
        texts = [f"{word} {things[number % 6]} on grass" for word in ("a", "the", "one")]
        image["sentences"] = [{"raw": text} for text in texts]
    (data / "dataset_flickr8k.json").write_text(json.dumps(annotations))
    recipe = write_recipe(
        tmp_path / "recipe.yaml", data, data={"concept_min_images": 2, "eval_split": None}, training={"max_steps": 1}
    )
    asked = ["--model.config.concept_loss_weight", "1.0", "--model.config.num_concepts", "2"]
    train_from_yaml(recipe, asked)
    model, processor = trainers[0].model, trainers[0].processing_class
    assert set(processor.tokenizer.convert_ids_to_tokens(model.config.concept_ids)) == set(things)
    further = [
        *asked,
        "--model.from_checkpoint",
        str(tmp_path / "out"),
        "--training.output_dir",
        str(tmp_path / "more"),
    ]
    train_from_yaml(recipe, [*further, "--data.concept_min_images", "1000"])
    assert trainers[1].model.config.concept_ids == model.config.concept_ids
    with pytest.raises(ValueError, match=r"none is in 1000 images \(`data.concept_min_images`\)"):
        train_from_yaml(
            recipe, [*asked, "--training.output_dir", str(tmp_path / "none"), "--data.concept_min_images", "1000"]
        )


def test_a_table_without_splits_is_trained_on_with_a_part_held_out(tmp_path: Path, trainers: list) -> None:
    root = tmp_path / "photos"
    names = [noise(root / "Images" / f"{number}.JPG", number).name for number in range(12)]
    (root / "captions.csv").write_text(
        "image,first,second\n" + "".join(f"{name},a red {name},a dog\n" for name in names)
    )
    recipe = write_recipe(tmp_path / "recipe.yaml", root, training={"max_steps": 1})
    columns = ["--data.caption_column", "[first, second]"]
    with pytest.raises(ValueError, match=r"`data\.eval_split` \('val'\) .* has train; .* `data\.val_fraction: 0\.1`"):
        train_from_yaml(recipe, columns)
    metrics = train_from_yaml(recipe, [*columns, "--data.val_fraction", "0.3"])
    trained = trainers[0].train_dataset.rows
    evaluated = trainers[0].eval_dataset.rows
    assert sorted([*trained["image_id"], *evaluated["image_id"]]) == sorted(names)
    assert 0 < len(evaluated) < len(trained)
    assert all(len(captions) == 2 for captions in trained["captions"])
    assert metrics["eval_CIDEr"] >= 0


def test_further_sources_are_trained_on_too(tmp_path: Path, trainers: list) -> None:
    source, more = write_data(tmp_path / "photos"), write_data(tmp_path / "more", train=4)
    recipe = write_recipe(tmp_path / "recipe.yaml", source, data={"more_train_sources": [str(more)]})
    train_from_yaml(recipe)
    ids = trainers[0].train_dataset.rows["image_id"]
    assert len(ids) == len(set(ids)) == 12 and ids[:8] == [str(number) for number in range(8)]
    assert ids[8:] == [f"more/{number}" for number in range(4)]
    assert "photos, more" in (tmp_path / "out" / "README.md").read_text()


def sidecars(folder: Path, names: list[str], seed: int) -> str:
    """Photos, each with a caption next to it."""
    for name in names:
        photo = folder / name
        photo.parent.mkdir(parents=True, exist_ok=True)
        noise(photo, seed).with_suffix(".txt").write_text(f"{folder.parent.name} {name}")
    return str(folder)


def test_images_of_further_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    source = sidecars(tmp_path / "main", ["1.png"], 0)
    a, b, other = (sidecars(tmp_path / name, ["1.png"], seed) for seed, name in enumerate(["a/data", "b/data", "c"]))
    # a source twice, to weigh twice, and in another spelling
    more = [a, b, a, f"{tmp_path}/c/../a/data/", other]
    data = DataArguments(source=source, more_train_sources=more, eval_split=None, cache_dir=str(tmp_path / "arrow"))
    rows = load_splits(data)["train"]
    paths = [os.path.realpath(image["path"]) for image in rows["image"]]
    assert list(zip(rows["image_id"], paths, strict=True)) == [
        ("1.png", f"{source}/1.png"),
        ("data/1.png", f"{a}/1.png"),
        ("data-2/1.png", f"{b}/1.png"),
        ("data/1.png", f"{a}/1.png"),
        ("data/1.png", f"{a}/1.png"),
        ("c/1.png", f"{other}/1.png"),
    ]


def test_an_id_of_two_images_is_named(tmp_path: Path) -> None:
    source = sidecars(tmp_path / "main", ["more/1.png", "2.png"], 0)
    more = sidecars(tmp_path / "more", ["1.png"], 1)
    data = DataArguments(source=source, more_train_sources=[more], eval_split=None, cache_dir=str(tmp_path / "arrow"))
    with pytest.raises(
        ValueError, match=r"have the id 'more/1\.png' \(.*main/more/1\.png and .*more/1\.png\); rename"
    ):
        load_splits(data)


def test_a_split_that_the_recipe_does_not_make_is_named(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", write_data(tmp_path / "data"), data={"splits": {"train": "train"}})
    with pytest.raises(
        ValueError,
        match=r"`data\.eval_split` \('val'\) is not in .*, which has train",
    ):
        train_from_yaml(recipe)


def test_the_configuration_of_a_hub_repository_reaches_the_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def load(source: Any, **settings: Any) -> None:
        asked.update(vars(source))
        raise InterruptedError

    monkeypatch.setattr(caption_datasets, "load_caption_dataset", load)
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path)
    with pytest.raises(InterruptedError):
        train_from_yaml(recipe, ["--data.config_name", "full", "--data.revision", "v1"])
    assert (asked["config_name"], asked["revision"], asked["streaming"]) == ("full", "v1", False)


def streamed(path: Path, data: Path, **training: Any) -> Path:
    settings = {"max_steps": 10, "save_strategy": "steps", "save_steps": 3, **training}
    return write_recipe(path, data, data={"streaming": True, "captions_per_image": 2}, training=settings)


@pytest.mark.slow
def test_a_stream_is_trained_on_evaluated_and_resumed(tmp_path: Path, trainers: list) -> None:
    """Ten steps of two images are two and a half times the stream: its end stops nothing, nor does a restart."""
    data = write_data(tmp_path / "data")
    whole = streamed(tmp_path / "recipe.yaml", data)
    metrics = train_from_yaml(whole)
    unbroken = losses(tmp_path / "out")
    assert list(unbroken) == list(range(1, 11))
    assert "images=3" in trainers[0].score_signature and metrics["eval_loss"] > 0
    assert (tmp_path / "out" / "model.safetensors").is_file()

    (tmp_path / "broken").mkdir()
    broken = streamed(tmp_path / "broken" / "recipe.yaml", data)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 8:
                raise KeyboardInterrupt

    class Stopping(FusionCaptionerTrainer):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self.add_callback(Stop())

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(captioning, "FusionCaptionerTrainer", Stopping)
        train_from_yaml(broken)
    train_from_yaml(broken, resume=True)
    assert losses(tmp_path / "broken" / "out") == unbroken
    assert trainers[-1].state.global_step == 10


def test_a_stream_gives_each_pass_in_another_order_with_other_captions(tmp_path: Path, trainers: list) -> None:
    data = write_data(tmp_path / "data")
    train_from_yaml(streamed(tmp_path / "recipe.yaml", data, max_steps=1, save_strategy="no"))
    rows = iter(trainers[0].train_dataset)
    passes = [[next(rows) for _ in range(8)] for _ in range(3)]
    for one in passes:
        assert {row["image_id"] for row in one} == {str(number) for number in range(8)}
    assert len({tuple(row["image_id"] for row in one) for one in passes}) == 3
    of_first = [[row["captions"] for row in one if row["image_id"] == "0"] for one in passes]
    assert of_first[0] != of_first[1] or of_first[1] != of_first[2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--training.max_steps", "-1"], ["training.max_steps", "-1", "data.streaming"]),
        (["--data.feature_cache", "features"], ["data.feature_cache", "features", "data.streaming"]),
        (["--data.splits", "train"], ["data.splits", "'train'", "train+restval"]),
    ],
)
def test_what_a_stream_cannot_do_is_refused(tmp_path: Path, flags: list[str], words: list[str]) -> None:
    recipe = streamed(tmp_path / "recipe.yaml", tmp_path)
    read_run_arguments(recipe)
    with pytest.raises(ValueError) as caught:
        read_run_arguments(recipe, flags)
    assert [word for word in words if word not in str(caught.value)] == []


def test_texts_that_are_cut_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_processor().tokenizer
    tokenizer.model_max_length = 6  # "a red square of train 0" has six tokens and BOS and EOS
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        write_data(tmp_path / "data"),
        tokenizer={"path": str(tmp_path / "tokenizer")},
        training={"max_steps": 1, "generation_max_new_tokens": 1},
    )
    with caplog.at_level(logging.INFO):
        train_from_yaml(recipe)
    assert "24 of 24 training texts are longer than 6 tokens" in caplog.text
    assert "3 of 3 generated texts were cut at their maximum length" in caplog.text


@pytest.mark.parametrize("task", ["captioning", "streaming", "retrieval", "classification", "prompted"])
@pytest.mark.slow
def test_a_run_that_diverges_ends_with_the_images_of_its_batch_and_without_a_model(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"learning_rate": 1e30, "max_steps": 9, "lr_scheduler_type": "constant", "eval_strategy": "no"}
    training |= {"save_strategy": "no", "load_best_model_at_end": False}
    path = tmp_path / "recipe.yaml"
    if task in ("captioning", "streaming"):
        data = {"streaming": task == "streaming"}
        recipe = write_recipe(path, write_data(tmp_path / "data"), data=data, training=training)
    elif task == "retrieval":
        recipe = write_head_recipe(path, write_data(tmp_path / "data"), task=task, training=training)
    else:
        source = write_labelled(tmp_path / "data", answer=["yes", "no"], question=["is it?"])
        recipe = write_head_recipe(path, source, task=task, training=training)
    assert main(["train", str(recipe)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"of step \d is (nan|inf), and training stops; the state before it is in .*Batch: \w", line), line
    state = json.loads((tmp_path / "out" / "non_finite" / "state.json").read_text())
    folder = "images" if task in ("captioning", "streaming", "retrieval") else "train"
    known = {path.stem for path in (tmp_path / "data" / folder).glob("*.png")}
    assert state["batch"] and {Path(image).stem for image in state["batch"]} <= known
    assert not list((tmp_path / "out").glob("*.safetensors")) and not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize(
    ("task", "further"),
    [("classification", {"accuracy", "auroc", "pearson"}), ("prompted", {"token_f1"}), ("retrieval", set())],
)
@pytest.mark.slow
def test_early_stopping_knows_the_scores_of_its_task(
    tmp_path: Path, task: str, further: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = []

    class Kept(StopEarly):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            stops.append(self)

    monkeypatch.setattr(base_trainer, "StopEarly", Kept)
    data = tmp_path / "data"
    write_data(data) if task == "retrieval" else write_labelled(data, answer=["yes", "no"], question=["is it?"])
    training = {"max_steps": 1, "early_stopping_patience": 1, "eval_strategy": "steps", "eval_steps": 1}
    training |= {"save_strategy": "steps", "save_steps": 1}
    train_from_yaml(write_head_recipe(tmp_path / "recipe.yaml", data, task=task, training=training))
    assert set(stops[0].others) == {f"eval_{name}" for name in further}


@pytest.mark.parametrize("task", ["captioning", "self_critical", "retrieval", "classification", "multiple_choice"])
@pytest.mark.slow
def test_a_model_that_returns_tuples_is_trained_evaluated_and_used(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", str(tmp_path / "out")
    model = {"config": {**MODEL_CONFIG, "return_dict": False}}
    training: dict[str, Any] = {"max_steps": 2, "logging_steps": 1}
    if task in ("captioning", "self_critical"):
        if task == "captioning":
            model["config"]["contrastive_loss_weight"] = 1.0
        else:
            training |= {"stage": "self_critical", "rewards": {"CIDEr": 1.0}}
        recipe = write_recipe(tmp_path / "recipe.yaml", write_data(data), model=model, training=training)
    else:
        {"retrieval": write_data, "classification": write_labelled, "multiple_choice": write_questions}[task](data)
        recipe = write_head_recipe(tmp_path / "recipe.yaml", data, task=task, model=model, training=training)
    train_from_yaml(recipe)
    term = {"captioning": "loss_contrastive", "self_critical": "loss_policy", "retrieval": "loss_contrastive"}
    assert term.get(task, "loss") in log_history(tmp_path / "out")[0]
    photo, index = str(next(data.rglob("*.png"))), str(tmp_path / "index")
    capsys.readouterr()
    commands = {
        "retrieval": [
            ["index", str(data), "--model", out, "--out", index],
            ["search", index, "a square", "--rerank", "2"],
        ],
        "classification": [["classify", photo, "--model", out, "--text", "a loud day"]],
        "multiple_choice": [
            ["answer", photo, "--model", out, "--question", "what is it", "--choices", "day", "night"]
        ],
    }
    for command in commands.get(task, [["caption", photo, "--model", out]]):
        assert main(command) == 0
    assert capsys.readouterr().out


def test_the_captions_of_the_evaluation_are_kept(tmp_path: Path) -> None:
    train_from_yaml(write_recipe(tmp_path / "recipe.yaml", write_data(tmp_path / "data"), training={"max_steps": 1}))
    lines = (tmp_path / "out" / "eval_captions.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == ["8", "9", "10"]
    assert log_history(tmp_path / "out")[-1]["eval_CIDEr"] >= 0


def test_a_feature_cache_of_an_encoder_that_is_trained_from_the_start_is_refused(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        write_data(tmp_path / "data"),
        data={"feature_cache": str(tmp_path / "features")},
        training={"train_image_encoder_from_step": 0},
    )
    with pytest.raises(ValueError, match=r"`data\.feature_cache`.*`training\.train_image_encoder_from_step` \(0\)"):
        train_from_yaml(recipe)
    assert not (tmp_path / "features").exists()


HALF_WRITTEN = """
import signal, sys
from pathlib import Path
from transformers import TrainerState
from fusion_captioner.cli import main

save = TrainerState.save_to_json

def save_or_wait(self, path):
    # the last file of a checkpoint: all others are written
    if Path(path).parent.name != "checkpoint-6":
        return save(self, path)
    print("half-written", flush=True)
    signal.pause()

TrainerState.save_to_json = save_or_wait
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_killed_while_it_saves_is_resumed_as_if_unbroken(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    settings = {"save_strategy": "steps", "save_steps": 3, "ema_decay": 0.5}
    recipes = {}
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
        recipes[name] = write_recipe(tmp_path / name / "recipe.yaml", data, training=settings)
    assert main(["train", str(recipes["unbroken"])]) == 0

    checkpoint = tmp_path / "broken" / "out" / "checkpoint-6"
    command = [sys.executable, "-c", HALF_WRITTEN, "train", str(recipes["broken"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = next((line for line in process.stdout if "half-written" in line), "")
        process.kill()
        errors = process.communicate()[1]
    assert (said.strip(), process.returncode) == ("half-written", -signal.SIGKILL), errors
    assert (checkpoint / "model.safetensors").is_file() and not (checkpoint / "trainer_state.json").exists()
    assert not (tmp_path / "broken" / "out" / "model.safetensors").exists()

    assert main(["train", str(recipes["broken"]), "--resume"]) == 0
    histories = {name: log_history(tmp_path / name / "out") for name in recipes}
    for rows in histories.values():
        for row in rows:
            for name in [name for name in row if name.endswith(("runtime", "per_second"))]:
                del row[name]
    summaries = [rows.pop(-2) for rows in histories.values()]
    assert all("train_loss" in summary for summary in summaries)
    assert [row["step"] for row in histories["unbroken"]] == [*range(1, 9), 8]
    assert histories["broken"] == histories["unbroken"]
    assert (checkpoint / "trainer_state.json").is_file()

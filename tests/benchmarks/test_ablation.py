"""`benchmarks/ablation.py`: a row is trained once and resumed, and the table says what the results say."""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny_recipe import MODEL_CONFIG, write_data
from transformers import ResNetConfig, ResNetModel

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.fusion import FUSIONS
from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor
from fusion_captioner.training.arguments import read_run_arguments

spec = importlib.util.spec_from_file_location("ablation", Path(__file__).parents[2] / "benchmarks" / "ablation.py")
assert spec is not None and spec.loader is not None
ablation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ablation)

FIELDS = {
    "model.config.hidden_size": 16,
    "model.config.num_attention_heads": 2,
    "model.config.projection_dim": 8,
    "tokenizer.min_frequency": 1,
    "training.generation_max_new_tokens": 4,
    "training.disable_tqdm": True,
}
SETTINGS = {"steps": 100, "flags": [], "source": "flickr8k", "vision_model": "lite2"}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Of a run of one step on pictures of noise."""
    vision = {name: value for name, value in MODEL_CONFIG["vision_config"].items() if name != "model_type"}
    ResNetModel(ResNetConfig(**vision)).save_pretrained(tmp_path / "vision")
    FusionCaptionerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vision")
    data = write_data(tmp_path / "data", train=4, val=2)
    folders = {"--source": data, "--cache": tmp_path / "cache", "--vision-model": tmp_path / "vision"}
    fields = {f"--{name}": value for name, value in FIELDS.items()} | {"--data.cache_dir": tmp_path / "arrow"}
    return [str(word) for pair in (folders | {"--out": tmp_path / "out"} | fields).items() for word in pair]


def test_every_row_is_a_change_of_its_own(tmp_path: Path) -> None:
    options = Namespace(source="photos", cache="features", vision_model="lite2", out=tmp_path, steps=7)
    flags = ["--training.logging_steps", "9", "--training.ema_decay", "0.9"]
    runs = {
        name: read_run_arguments(ablation.RECIPE, ablation.row_flags(name, 3, options, flags))
        for name in ablation.ROWS
    }
    for name, run in runs.items():
        FusionCaptionerConfig(**run.model.config, concept_token_ids=[*range(30)])  # chosen from the captions
        training = run.training
        assert (training.max_steps, training.seed, training.logging_steps, training.eval_strategy) == (7, 3, 9, "no")
        assert training.output_dir == str(tmp_path / f"{name}-3") and not training.load_best_model_at_end
    recipe = runs["attention"].model.config
    changes = {name: set(run.model.config.items()) - set(recipe.items()) for name, run in runs.items()}
    assert changes["gated"] == {("fusion_type", "gated")}
    assert changes["transformer_decoder"] == {("decoder_type", "transformer")}
    assert (
        changes["no_word_dropout"] == {("word_dropout", 0)} and runs["no_word_dropout"].data == runs["attention"].data
    )
    assert runs["no_mirroring"].data.augmentations == [] and runs["no_average"].training.ema_decay == 0
    assert runs["attention"].training.ema_decay == 0.9 and changes["no_residual"] == {("decoder_residual", False)}
    assert runs["small_vocabulary"].tokenizer.vocab_size == 1500 and runs["byte_bpe"].tokenizer.kind == "byte_bpe"
    assert changes["matching"] == {("contrastive_loss_weight", 0.1), ("matching_loss_weight", 0.1)}
    assert changes["concepts"] == {("concept_loss_weight", 1.0), ("num_concepts", 20)}
    assert (runs["plain"].model.preset, runs["plain"].model.config) == ("plain", {"hidden_size": 512})
    assert {run.model.config.get("fusion_type", "sum") for run in runs.values()} == set(FUSIONS)
    weights = {
        f"{name}_loss_weight" for name in ("contrastive", "matching", "reconstruction", "adversarial", "concept")
    }
    assert weights <= {field for change in changes.values() for field, _ in change}


def test_a_row_is_trained_once_with_its_change_alone(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    resumed: list[bool] = []
    train = ablation.train_from_yaml
    monkeypatch.setattr(
        ablation, "train_from_yaml", lambda *given, resume: resumed.append(resume) or train(*given, resume=resume)
    )
    for _ in range(2):
        assert ablation.main([*arguments, "--steps", "1", "--rows", "plain"]) == 0
    assert resumed == [True]
    result = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    # among what the trainer prints
    assert [line for line in capsys.readouterr().out.splitlines() if "row" in line] == [json.dumps(result)]
    assert (result["row"], result["seed"]) == ("plain", 0) and result["CIDEr"] >= 0 and result["loss"] > 0
    config = json.loads((tmp_path / "out" / "plain-0" / "config.json").read_text())
    preset = {"fusion_type": "sum", "decoder_input": "joint_and_embedding", "label_smoothing": 0.0, "dropout": 0.0}
    assert {name: config[name] for name in preset} == preset and not config["tie_word_embeddings"]
    state = json.loads((tmp_path / "out" / "plain-0" / "trainer_state.json").read_text())
    assert state["global_step"] == 1 and not list((tmp_path / "out").glob("*/checkpoint-*"))

    # another budget may not go into the same table
    assert ablation.main([*arguments, "--steps", "2", "--rows", "plain"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ablation.py: `--out`") and "'steps': 1" in error and "'steps': 2" in error


@pytest.mark.parametrize("flags", [["--source", "photos"], ["--table"]])
def test_what_is_missing_is_named_in_one_line(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture) -> None:
    assert ablation.main(["--out", str(tmp_path), *flags]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith(f"ablation.py: `--{'out' if '--table' in flags else 'cache'}`")


def test_the_table_and_the_plot_say_what_was_measured(tmp_path: Path) -> None:
    scores = {("attention", 0): 0.50, ("attention", 1): 0.54, ("sum", 0): 0.40, ("contrastive", 0): 0.53}
    scores |= {("matching", 0): 0.52, ("sum", 1): 0.42}
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    with (tmp_path / "results.jsonl").open("w") as file:
        for (row, seed), cider in scores.items():
            others = dict.fromkeys(ablation.METRICS, 0.25)
            result = {"row": row, "seed": seed, "parameters": 8_200_000, **others, "CIDEr": cider, "loss": 3.0}
            file.write(json.dumps(result) + "\n")
    assert ablation.main(["--out", str(tmp_path), "--table", "--docs", str(tmp_path)]) == 0
    page = (tmp_path / "ablation.md").read_text()
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    rows = {row[0]: row[1:] for row in cells}
    assert page.startswith("# Ablation\n") and "](ablation.svg)" in page
    assert "--steps 100 --rows attention sum contrastive matching --seeds 0 1" in page
    assert list(rows)[1:] == [ablation.ROWS[name].label for name in ("attention", "sum", "contrastive", "matching")]
    assert rows["attention fusion, LSTM decoder"] == ["0.5200", "0.2500", "0.2500", "0.2500", "", "2", "8.20"]
    assert rows["sum fusion"][4] == "-0.1100 (-0.1200 to -0.1000)"
    assert rows["contrastive loss, 0.1"][4:6] == ["+0.0300", "1"]
    assert rows["contrastive and matching losses, 0.1 each"][4] == "-0.0100"

    circles = [node for node in ElementTree.parse(tmp_path / "ablation.svg").iter() if node.tag.endswith("circle")]
    places = [float(node.attrib["cx"]) for node in circles]
    order = [0.50, 0.54, 0.40, 0.42, 0.53, 0.52]
    assert len(places) == len(order)
    assert sorted(range(6), key=places.__getitem__) == sorted(range(6), key=order.__getitem__)

import sys
from pathlib import Path

import pytest
import torch

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.metrics import tokenization
from fusion_captioner.training import training_arguments
from fusion_captioner.training.arguments import read_run_arguments
from fusion_captioner.training.recipes import recipe_names

RECIPE = """\
model:
  config: {fusion_type: gated}
data:
  source: photos
  captions_per_image: 5
training:
  learning_rate: 1e-3
  save_strategy: "no"
  eval_strategy: "no"
  load_best_model_at_end: false
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_fields_come_from_the_file_and_flags_win(recipe: Path) -> None:
    flags = ["--training.seed", "7", "--model.config.hidden_size=64", "--data.captions-per-image", "all"]
    run = read_run_arguments(recipe, flags)
    assert run.training.learning_rate == 1e-3
    assert run.training.seed == 7
    assert run.model.config == {"fusion_type": "gated", "hidden_size": 64}
    assert run.data.captions_per_image == "all"
    assert run.tokenizer.vocab_size == 4000


def test_a_nested_flag_keeps_the_fields_beside_it_and_texts_stay_texts(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("{fusion_type: gated}", "{vision_config: {depths: [1, 1], layer_type: basic}}"))
    flags = ["--model.config.vision_config.layer_type", "bottleneck", "--model.config.note", "'5'"]
    run = read_run_arguments(recipe, [*flags, "--data.splits.train", "train+restval", "--model.config.word", "no"])
    vision = {"depths": [1, 1], "layer_type": "bottleneck"}
    assert run.model.config == {"vision_config": vision, "note": "5", "word": "no"}
    assert run.data.splits == {"train": "train+restval"}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", ".1e-2", "1e-03", "+1e-3"])
def test_numbers_with_an_exponent_are_numbers(recipe: Path, text: str) -> None:
    recipe.write_text(RECIPE.replace("1e-3", text))
    assert read_run_arguments(recipe).training.learning_rate == 1e-3
    assert read_run_arguments(recipe, ["--training.weight_decay", text]).training.weight_decay == 1e-3


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, True), (torch.float32, False)])
def test_bf16_auto_is_what_the_machine_is_fast_in(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, expected: bool
) -> None:
    monkeypatch.setattr(training_arguments, "faster_dtype", lambda: dtype)
    training = read_run_arguments(recipe, ["--training.bf16", "auto"]).training
    assert training.bf16 is expected
    assert training.mixed_precision == ("bf16" if expected else "no")
    assert training.computes_in == ("bfloat16" if expected else "float32")
    assert read_run_arguments(recipe).training.bf16 is False
    assert read_run_arguments(recipe, ["--training.bf16", "true"]).training.bf16 is True
    with pytest.raises(ValueError, match=r"`training\.bf16` \('fast'\) must be true or false, or be one of 'auto'"):
        read_run_arguments(recipe, ["--training.bf16", "fast"])


def test_no_is_a_word_in_files_and_flags(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace('"no"', "no"))
    run = read_run_arguments(recipe, ["--training.logging_strategy", "no", "--training.fp16_full_eval", "True"])
    assert {run.training.save_strategy, run.training.eval_strategy, run.training.logging_strategy} == {"no"}
    assert run.training.fp16_full_eval is True and run.training.load_best_model_at_end is False


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_reads(name: str) -> None:
    run = read_run_arguments(name)
    assert run.data.source


def test_the_bundled_captioner_is_found_wherever_the_package_is(recipe: Path) -> None:
    run = read_run_arguments(recipe, ["--model.from_checkpoint", "bundled"])
    assert run.model.from_checkpoint == DEFAULT_CHECKPOINT


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--training.sed", "7"], ["training.sed", "did you mean `seed`"]),
        (["--data.captions_per_image", "lots"], ["data.captions_per_image", "lots", "all"]),
        (["--data.skip_bad_images", "no"], ["data.skip_bad_images", "'no'", "true or false"]),
        (["--seed", "7"], ["--seed", "SECTION.FIELD"]),
        (["--training.seed"], ["--training.seed", "value"]),
        (["--training.seed", "many"], ["training.seed", "many", "whole number"]),
        (["--training.ema_decay", "null"], ["training.ema_decay", "null", "leave it out"]),
        (["--training.num_train_epochs", "null"], ["training.num_train_epochs", "null", "leave it out"]),
        (["--training.learning_rate", "fast"], ["training.learning_rate", "fast", "number"]),
        (["--data.skip_bad_images", "perhaps"], ["data.skip_bad_images", "true or false"]),
        (["--data.skip_bad_images", "null"], ["data.skip_bad_images", "null", "true or false"]),
        (["--data.source", "null"], ["data.source", "null", "text"]),
        (["--data.max_train_images", "3.5"], ["data.max_train_images", "3.5", "whole number"]),
        (["--training.seed", "true"], ["training.seed", "True", "whole number"]),
        (["--data.augmentations", "flip"], ["data.augmentations", "'flip'", "list of texts"]),
        (["--data.splits", "train"], ["data.splits", "'train'", "{train: train+restval}"]),
        (["--model.config", "[1]"], ["model.config", "[1]", "{fusion_type: gated}"]),
        (["--task", "captioning"], ["--task", "SECTION.FIELD"]),
        (["--training.stage", "fine_tuning"], ["training.stage", "fine_tuning", "cross_entropy, self_critical"]),
        (["--training.optim.name", "adam"], ["training.optim", "adam", "text"]),
        (["--data.config_name", "2017"], ["data.config_name", "2017", "text", "quotes"]),
        (["--optimizer.name", "adam"], ["optimizer", "section"]),
        (["--data.source", ""], ["data.source"]),
        (["--data.metric_tokenizer", "ptb"], ["`data.metric_tokenizer` ('ptb')", "auto, words"]),
        (["--model.preset", "fancy"], ["model.preset", "fancy", "plain"]),
    ],
)
def test_a_wrong_flag_is_named(recipe: Path, flags: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        read_run_arguments(recipe, flags)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_and_a_malformed_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_run_arguments(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("model: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_run_arguments(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data:\n  source: a\ndata:\n  layout: json\n", "line 3: is not valid YAML (the key 'data' is there twice"),
        (
            "training:\n  seed: 1\n  seed: 2\n",
            "line 3: is not valid YAML (the key 'seed' is there twice, first in line 2",
        ),
        ("model:\n  config:\n    {1: a, 0x1: b}\n", "line 3: is not valid YAML (the key 1 is there twice"),
        ("data:\n  <<: {source: a,\n    source: b}\n", "line 3: is not valid YAML (the key 'source' is there twice"),
        ("data:\n  <<: {source: a}\n  <<: {source: b}\n", "line 3: is not valid YAML (the key '<<' is there twice"),
        ("data: &a\n  source: *a\n", "line 2: is not valid YAML (aliases such as *a are not read"),
        ("training:\n  seed: !!bool abc\n", "line 2: is not valid YAML ('abc' cannot be read as bool"),
        ("training:\n  seed: !!int abc\n", "line 2: is not valid YAML ('abc' cannot be read as int"),
        ("training:\n  seed: !!float abc\n", "line 2: is not valid YAML ('abc' cannot be read as float"),
        ("training:\n  seed: !!int ''\n", "line 2: is not valid YAML ('' cannot be read as int"),
        ("training:\n  run_name: !!timestamp abc\n", "line 2: is not valid YAML ('abc' cannot be read as timestamp"),
        ("training:\n  run_name: 2024-13-45\n", "('2024-13-45' cannot be read as timestamp; put it in quotes"),
        ("training:\n  seed: 0x_\n", "line 2: is not valid YAML ('0x_' cannot be read as int"),
        pytest.param(f"training:\n  seed: {'9' * 5000}\n", "line 2: is not valid YAML ('999", id="digits"),
        pytest.param(f"training:\n  run_name: 0x{'f' * 5000}\n", "line 2: is not valid YAML ('0xf", id="hex digits"),
        ("training:\n  ? !!int x\n  : 1\n", "line 2: is not valid YAML ('x' cannot be read as int"),
        ('data:\n  source: "\\UFFFFFFFF"\n', "line 2: is not valid YAML"),
        ("data:\n  source: a\0b\n", "line 2: is not valid YAML (the character '\\x00'"),
        ("data:\n  source: a\n---\n", "line 3: is not valid YAML (expected a single document"),
        ("data:\n  {a: [}\n", "line 2: is not valid YAML (while parsing"),
    ],
)
def test_a_malformed_file_is_one_line_with_its_number(recipe: Path, text: str, words: str) -> None:
    recipe.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_run_arguments(recipe)
    message = str(caught.value)
    assert message.startswith(f"{recipe}, line ") and words in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    "value", ["!!bool abc", "2024-13-45", "0x_", pytest.param("9" * 5000, id="digits"), "*a", "{a: 1, a: 2}", "["]
)
def test_a_malformed_flag_is_named(recipe: Path, value: str) -> None:
    with pytest.raises(
        ValueError, match=r"^--training\.run_name \(.{1,210}\) is not valid YAML \(.+\); put"
    ) as caught:
        read_run_arguments(recipe, ["--training.run_name", value])
    assert len(str(caught.value)) < 900


def test_merged_keys_may_be_written_over(recipe: Path) -> None:
    recipe.write_text("data: {<<: {source: a, layout: json}, source: b}\n")
    data = read_run_arguments(recipe).data
    assert (data.source, data.layout) == ("b", "json")


LONG = f"[{', '.join(['[' + ', '.join(['x' * 99] * 20) + ']'] * 20)}]"
LARGE = {
    "task": f"task: {LONG}",
    "section": f"data: {LONG}",
    "value": f"data: {{source: {LONG}}}",
    "name of a field": f"data:\n  ? {'y' * 99_999}\n  : 1",
    "name of a section": f"? {'y' * 99_999}\n: 1",
    "stage": f"training: {{stage: {LONG}}}",
    "tag": f"data: !{'x' * 9999} 5",
}


@pytest.mark.parametrize("case", LARGE)
def test_a_message_does_not_grow_with_what_it_shows(recipe: Path, case: str) -> None:
    recipe.write_text(LARGE[case])
    with pytest.raises(ValueError) as caught:
        read_run_arguments(recipe)
    assert len(str(caught.value)) < 2000


def test_a_tokenizer_that_is_not_installed_is_named_before_training(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    tokenization._jieba_cut.cache_clear()
    with pytest.raises(ImportError, match="pip install jieba"):
        read_run_arguments(recipe, ["--data.metric_tokenizer", "jieba"])


@pytest.mark.parametrize("task", ["retrieval", "classification", "multiple_choice"])
def test_a_tokenizer_of_scores_is_refused_by_tasks_without_scores_of_captions(recipe: Path, task: str) -> None:
    recipe.write_text(f"task: {task}\ndata: {{source: x, metric_tokenizer: characters}}\n")
    with pytest.raises(ValueError, match=r"data\.metric_tokenizer"):
        read_run_arguments(recipe)

"""Checkpoints of one head given where another is wanted, and checkpoints of strangers."""

import json
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_exports import tiny_processor
from tiny_models import tiny_head, tiny_model

from fusion_captioner import (
    FusionCaptionerForImageTextRetrieval,
    FusionCaptionerForMultipleChoice,
    FusionCaptionerForSequenceClassification,
)
from fusion_captioner.checkpoints.loading import check_finite, load_captioner, load_head
from fusion_captioner.cli import main


def test_the_own_part_of_another_head_is_no_classifier_but_a_start_for_one(tmp_path: Path) -> None:
    name = str(tmp_path)
    tiny_head(FusionCaptionerForMultipleChoice).save_pretrained(name)
    tiny_processor().save_pretrained(name)
    head = FusionCaptionerForSequenceClassification
    with pytest.raises(
        ValueError, match="is a FusionCaptionerForMultipleChoice; give one that was trained to classify"
    ):
        load_head(head, name, trained_to="classify")
    start, _ = load_head(head, name, may_lack_weights=True, trained_to="go on", num_labels=3)
    assert start.classifier[-1].out_features == 3
    # of what they share, every weight must be there as it is
    with pytest.raises(ValueError, match=r"4 tensors .* another shape than config\.json says"):
        load_head(head, name, may_lack_weights=True, trained_to="go on", projection_dim=4)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "captioner"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def captioner(sound: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return shutil.copytree(sound, tmp_path / "captioner")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], captioner: Path, photo: str) -> Callable[[], str]:
    """The one line of `caption` with the captioner; it names it."""

    def run() -> str:
        capsys.readouterr()  # bars of saving
        assert main(["caption", photo, "--model", str(captioner), "--max-new-tokens", "3"]) == 2
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        assert output.out == "" and line.startswith(f"fusion-captioner: {captioner}")
        return line

    return run


def change(file: Path, *keys: str, value: object) -> None:
    document = place = json.loads(file.read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(document))


def test_code_of_a_tokenizer_is_not_run_even_after_a_yes(
    captioner: Path, photo: str, refused: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(captioner / "tokenizer_config.json", "tokenizer_class", value="Evil")
    change(captioner / "tokenizer_config.json", "auto_map", value={"AutoTokenizer": [None, "evil.Evil"]})
    (captioner / "evil.py").write_text(
        f"open({str(tmp_path / 'it-ran')!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast\n\nclass Evil(PreTrainedTokenizerFast):\n    pass\n"
    )
    monkeypatch.setattr(sys, "stdin", StringIO("y\n" * 9))
    assert "add --trust-remote-code if you trust it" in refused()
    assert not (tmp_path / "it-ran").exists()
    assert main(["caption", photo, "--model", str(captioner), "--trust-remote-code", "--max-new-tokens", "3"]) == 0
    assert (tmp_path / "it-ran").exists()


BOMBS: list[tuple[tuple[str, ...], object]] = [
    (("vocab_size",), 10**9),
    (("hidden_size",), 2**20),
    (("num_hidden_layers",), 9_000),
    (("vision_config", "hidden_sizes"), [2**20, 2**20]),
]


@pytest.mark.parametrize("form", ["shards", "pickle"])
@pytest.mark.parametrize(("keys", "value"), BOMBS)
def test_a_config_of_more_than_its_shards_or_pickle_hold_is_refused(
    captioner: Path, refused: Callable[[], str], form: str, keys: tuple[str, ...], value: object
) -> None:
    if form == "shards":
        (captioner / "model.safetensors").unlink()
        tiny_model().save_pretrained(captioner, max_shard_size="20KB")
        assert len(list(captioner.glob("model-*.safetensors"))) > 1
    else:
        torch.save(load_file(captioner / "model.safetensors"), captioner / "pytorch_model.bin")
        (captioner / "model.safetensors").unlink()
    change(captioner / "config.json", *keys, value=value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "config.json" in refused()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


@pytest.mark.parametrize(("keys", "value"), BOMBS)
def test_a_training_does_not_start_from_a_config_of_more_than_its_weights(
    captioner: Path, keys: tuple[str, ...], value: object
) -> None:
    change(captioner / "config.json", *keys, value=value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OSError, match=r"config\.json describes a model of more than") as caught:
        load_captioner(str(captioner), may_lack_weights=True, dropout=0.1)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


def test_a_training_for_another_task_starts_from_a_captioner(captioner: Path) -> None:
    settings = {"may_lack_weights": True, "contrastive_loss_weight": 1.0}
    model, _ = load_head(FusionCaptionerForImageTextRetrieval, str(captioner), trained_to="go on", **settings)
    assert model.config.contrastive_loss_weight == 1.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 200_000,
        b'{"weight_map": []}',
        b'{"metadata": {}, "weight_map": {"a": "../a.safetensors"}}',
    ],
)
def test_a_list_of_shards_that_is_none(captioner: Path, refused: Callable[[], str], content: bytes) -> None:
    (captioner / "model.safetensors").unlink()
    tiny_model().save_pretrained(captioner, max_shard_size="20KB")
    (captioner / "model.safetensors.index.json").write_bytes(content)
    refused()


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("vocab_size",), 10**9),
        (("hidden_size",), 2**20),
        (("projection_dim",), 2**28),
        (("num_hidden_layers",), 10**7),
        (("num_hidden_layers",), 9_000),
        (("num_labels",), 10**9),
        (("vision_config", "depths"), [10**7, 1]),
        (("vision_config", "hidden_sizes"), [2**20, 2**20]),
        (("max_frames",), 10**9),
        (("max_position_embeddings",), 2**35),
    ],
)
def test_a_config_of_more_than_the_weights_is_refused_before_it_is_built(
    captioner: Path, refused: Callable[[], str], keys: tuple[str, ...], value: object
) -> None:
    if keys[0] == "max_position_embeddings":
        transformer = tiny_model(decoder_type="transformer")
        transformer.save_pretrained(captioner)
    change(captioner / "config.json", *keys, value=value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = refused()
    assert "config.json" in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


def test_images_of_gigapixels_are_refused(captioner: Path, refused: Callable[[], str]) -> None:
    change(captioner / "processor_config.json", "image_processor", "size", value={"height": 60_000, "width": 60_000})
    assert "`size` ({'height': 60000, 'width': 60000}) must be" in refused()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *((name, b"[" * 200_000) for name in ("config.json", "generation_config.json", "tokenizer.json")),
        *((name, b'{"a":' * 200_000) for name in ("config.json", "tokenizer_config.json", "processor_config.json")),
        ("special_tokens_map.json", b"{"),
    ],
)
def test_json_that_is_none_or_nested_too_deep(
    captioner: Path, refused: Callable[[], str], file: str, content: bytes
) -> None:
    (captioner / file).write_bytes(content)
    assert f"{file}: is not valid JSON" in refused()


@pytest.mark.parametrize("damage", ["cut off", "empty", "a list", "random"])
def test_any_damaged_file_is_one_line(sound: Path, captioner: Path, refused: Callable[[], str], damage: str) -> None:
    for file in sorted(path.name for path in sound.iterdir() if path.suffix in (".json", ".safetensors")):
        whole = (sound / file).read_bytes()
        damages = {"cut off": whole[: len(whole) // 2], "empty": b"", "a list": b"[]", "random": b"\xd3\x8e" * 99}
        (captioner / file).write_bytes(damages[damage])
        refused()
        (captioner / file).write_bytes(whole)


@pytest.mark.parametrize(
    "content", [b"no weights", b"", b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"PK\x03\x04" + b"\0" * 99]
)
def test_a_bin_file_that_holds_no_weights(captioner: Path, refused: Callable[[], str], content: bytes) -> None:
    (captioner / "model.safetensors").unlink()
    (captioner / "pytorch_model.bin").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # as in a shell, where they would be further lines
        line = refused()
    assert "its model cannot be loaded" in line and "weights_only" not in line


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["2", [], [1, "2"], 1.5, 10**9, -1, {"a": 1}, [[1]], True])
def test_an_end_token_that_is_none(captioner: Path, refused: Callable[[], str], file: str, value: object) -> None:
    change(captioner / file, "eos_token_id", value=value)
    assert "eos_token_id" in refused()


@pytest.mark.parametrize("key", ["num_beams", "max_new_tokens", "length_penalty", "temperature", "top_k"])
def test_a_setting_of_generation_that_is_no_number(captioner: Path, refused: Callable[[], str], key: str) -> None:
    change(captioner / "generation_config.json", key, value="many")
    assert key in refused()


def test_a_length_penalty_that_no_length_can_be_raised_to(captioner: Path, refused: Callable[[], str]) -> None:
    change(captioner / "generation_config.json", "length_penalty", value=300.0)
    assert "`length_penalty` (300.0) must be -10 to 10" in refused()


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "architectures", True),
        ("config.json", "architectures", [1]),
        ("tokenizer_config.json", "model_max_length", "many"),
    ],
)
def test_other_values_of_the_wrong_type(
    captioner: Path, refused: Callable[[], str], file: str, key: str, value: object
) -> None:
    change(captioner / file, key, value=value)
    assert f"`{key}`" in refused()


def test_a_tokenizer_of_more_words_than_the_model(captioner: Path, refused: Callable[[], str]) -> None:
    processor = tiny_processor()
    processor.tokenizer.add_tokens([f"more{number}" for number in range(60)])
    processor.save_pretrained(captioner)
    assert "its tokenizer has" in refused()


def test_weights_that_are_not_finite(captioner: Path, refused: Callable[[], str]) -> None:
    weights = load_file(captioner / "model.safetensors")
    key = next(key for key in weights if "decoder" in key)
    weights[key][0] = torch.nan
    save_file(weights, captioner / "model.safetensors", metadata={"format": "pt"})
    assert f"1 tensor (first: {key}) has weights that are not finite" in refused()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.region_projection.weight[0, 0] = value
        model.lm_head.bias[3] = value
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    message = r"2 tensors \(first: lm_head\.bias\) have weights that are not finite"
    with pytest.raises(ValueError, match=message) as caught:
        load_captioner(str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        check_finite(model, "a model")
    check_finite(tiny_model(), "a model")

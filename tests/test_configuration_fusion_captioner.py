"""A config accepts what a model can be built from and refuses the rest in one line that names field and value."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import VISION_CONFIGS, tiny_config
from transformers import AutoConfig, ResNetConfig, ViTConfig, WhisperConfig

from fusion_captioner import FusionCaptionerConfig
from fusion_captioner.checkpoints.converting import efficientnet_lite_config

LANGUAGES = {"languages": ["en", "de"], "language_token_ids": [3, 4]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": 0}, ["hidden_size", "(0)", "at least 1"]),
        ({"vocab_size": -3}, ["vocab_size", "(-3)", "at least 1"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "(0)", "at least 1"]),
        ({"hidden_size": 20, "num_attention_heads": 8}, ["hidden_size", "(20)", "num_attention_heads", "(8)"]),
        ({"dropout": 1.0}, ["dropout", "(1.0)", "below 1"]),
        ({"label_smoothing": -0.1}, ["label_smoothing", "(-0.1)", "at least 0"]),
        ({"contrastive_loss_weight": -1.0}, ["contrastive_loss_weight", "(-1.0)", "0 (off) or positive"]),
        ({"matching_loss_weight": 0.5}, ["matching_loss_weight", "(0.5)", "contrastive_loss_weight"]),
        ({"caption_loss_weight": 0.0}, ["caption_loss_weight", "contrastive_loss_weight", "all 0", "above 0"]),
        ({"initializer_range": 0.0}, ["initializer_range", "(0.0)", "positive"]),
        ({"max_frames": -1}, ["max_frames", "(-1)", "number of frames"]),
        ({"fusion_type": "multiply"}, ["fusion_type", "multiply", "co_attention"]),
        ({"text_encoder_type": "rnn"}, ["text_encoder_type", "rnn", "lstm"]),
        ({"decoder_type": "mamba"}, ["decoder_type", "mamba", "transformer"]),
        ({"decoder_input": "image"}, ["decoder_input", "image", "joint_and_embedding"]),
        ({"contrastive_loss_type": "triplet"}, ["contrastive_loss_type", "triplet", "info_nce"]),
        ({"modality_dropout": 1.0}, ["modality_dropout", "(1.0)", "below 1"]),
        ({"num_audio_regions": 0}, ["num_audio_regions", "(0)", "at least 1"]),
        ({"class_weights": [1.0, 2.0, 3.0]}, ["class_weights", "[1.0, 2.0, 3.0]", "2 labels", "num_labels"]),
        ({"class_weights": [1.0, -2.0]}, ["class_weights", "[1.0, -2.0]", "0 or positive"]),
        ({"class_weights": [0.0, 0.0]}, ["class_weights", "one above 0"]),
        ({"class_weights": [1.0], "num_labels": 1}, ["class_weights", "regression", "leave them out"]),
        ({"class_weights": [1.0, 2.0], "problem_type": "regression"}, ["class_weights", "regression"]),
        ({"num_concepts": -1}, ["num_concepts", "(-1)", "positive"]),
        ({"num_concepts": 2}, ["num_concepts", "(2)", "concept_token_ids", "None"]),
        ({"concept_loss_weight": 0.5}, ["concept_loss_weight", "(0.5)", "concept_token_ids"]),
        ({"concept_loss_weight": 0.5, "concept_token_ids": []}, ["concept_loss_weight", "concept_token_ids"]),
        ({"concept_token_ids": [7, 5]}, ["concept_token_ids", "[7, 5]", "sorted"]),
        ({"concept_token_ids": [5, 5]}, ["concept_token_ids", "[5, 5]", "each once"]),
        ({"concept_token_ids": [5, 50], "vocab_size": 50}, ["concept_token_ids", "[5, 50]", "vocab_size", "(50)"]),
        ({"concept_token_ids": [-1, 5]}, ["concept_token_ids", "[-1, 5]", "at least 0"]),
        ({"concept_token_ids": [5, 6], "num_concepts": 3}, ["num_concepts", "(3)", "concept_token_ids", "(2)"]),
        ({"concept_token_ids": [[5, 6]]}, ["concept_token_ids", "`languages` is unset"]),
        ({"concept_token_ids": [5, 6], **LANGUAGES}, ["concept_token_ids", "one list", "en, de"]),
        ({"concept_token_ids": [[5, 6]], **LANGUAGES}, ["concept_token_ids", "one list", "en, de"]),
        ({"concept_token_ids": [[5], [6, 6]], **LANGUAGES}, ["concept_token_ids", "[6, 6]", "each once"]),
        ({"audio_config": {"model_type": "wisper"}}, ["audio_config", "wisper", "wav2vec2"]),
        ({"audio_config": {"d_model": 8}}, ["audio_config", "model_type", "whisper"]),
        ({"vision_config": {"model_type": "resnest"}}, ["vision_config", "resnest", "vit"]),
    ],
)
def test_a_value_out_of_range_names_field_value_and_what_is_right(fields: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        FusionCaptionerConfig(**fields)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("hidden_size", "512", "int"),
        ("hidden_size", 512.0, "int"),
        ("dropout", "0.1", "float"),
        ("use_cache", 1, "bool"),
        ("vision_config", "resnet", "dict"),
        ("fusion_type", None, "gated"),
    ],
)
def test_a_wrong_type_names_field_value_and_type(name: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        FusionCaptionerConfig(**{name: value})
    assert [word for word in (name, str(value), expected) if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_a_wrong_value_is_refused_after_construction_too() -> None:
    config = FusionCaptionerConfig()
    with pytest.raises(ValueError, match="hidden_size"):
        config.hidden_size = "512"
    assert config.hidden_size == 512


def test_an_unknown_key_is_refused_in_the_constructor() -> None:
    with pytest.raises(ValueError, match=r"`hidden_szie` \(3\) is not a field .*spelling.* hidden_size"):
        FusionCaptionerConfig(hidden_szie=3)


@pytest.mark.parametrize("vision_type", VISION_CONFIGS)
def test_an_unknown_key_of_the_vision_config_is_refused(tmp_path: Path, vision_type: str) -> None:
    vision_config = {"model_type": vision_type, **VISION_CONFIGS[vision_type]}
    message = r"`vision_config\.hidden_szie` \(3\) is not a field of .*spelling.* num_channels"
    with pytest.raises(ValueError, match=message) as caught:
        FusionCaptionerConfig(vision_config=vision_config | {"hidden_szie": 3})
    assert "\n" not in str(caught.value)
    tiny_config(vision_config=vision_config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"vision_config": document["vision_config"] | {"hidden_szie": 3}}))
    for loader in (FusionCaptionerConfig, AutoConfig):
        with pytest.raises(ValueError, match=message):
            loader.from_pretrained(tmp_path)


def test_what_transformers_stores_in_a_vision_config_is_accepted() -> None:
    # of transformers 4, names that the class maps, what it derives, and what is private
    keys = {"torchscript": False, "torch_dtype": "float32", "max_length": 20, "num_labels": 3, "_private": 1}
    config = FusionCaptionerConfig(vision_config={"model_type": "swin", "num_layers": 4, "hidden_size": 768, **keys})
    assert config.vision_config.num_labels == 3


def test_leftovers_of_a_pretrained_vision_config_are_not_saved(tmp_path: Path) -> None:
    given = ViTConfig(path_norm=True, hidden_size=24, num_attention_heads=2)
    config = FusionCaptionerConfig(vision_config=given)
    assert given.path_norm and not hasattr(config.vision_config, "path_norm")
    config.save_pretrained(tmp_path)
    assert FusionCaptionerConfig.from_pretrained(tmp_path).vision_config.hidden_size == 24


def test_where_an_encoder_came_from_is_not_saved(tmp_path: Path) -> None:
    ResNetConfig(**VISION_CONFIGS["resnet"]).save_pretrained(tmp_path / "encoder")
    vision = AutoConfig.from_pretrained(tmp_path / "encoder")
    config = FusionCaptionerConfig(vision_config=vision)
    config.save_pretrained(tmp_path / "captioner")
    assert str(tmp_path) not in (tmp_path / "captioner" / "config.json").read_text() + str(config.to_dict())
    # the same keys as the encoder's config by itself
    assert config.to_dict()["vision_config"]["_name_or_path"] == ""
    assert vision.name_or_path == str(tmp_path / "encoder")


@pytest.mark.parametrize("variant", ["lite0", "lite2"])
def test_a_converted_efficientnet_lite_round_trips(tmp_path: Path, variant: str) -> None:
    efficientnet_lite_config(variant).save_pretrained(tmp_path / "vision")
    config = tiny_config(vision_config=AutoConfig.from_pretrained(tmp_path / "vision"))
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict()["vision_config"] == config.to_dict()["vision_config"]
    assert loaded.vision_config.squeeze_expansion_ratio == 0


def edited(folder: Path, **changes: object) -> Path:
    FusionCaptionerConfig().save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("name", "value"), [("fusion", "sum"), ("hidden_size", 0), ("hidden_size", "512"), ("decoder_type", "rnn")]
)
@pytest.mark.parametrize("loader", [FusionCaptionerConfig, AutoConfig])
def test_a_wrong_config_json_is_refused(tmp_path: Path, loader: type, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        loader.from_pretrained(edited(tmp_path, **{name: value}))


def test_what_transformers_stores_beside_the_fields_is_accepted(tmp_path: Path) -> None:
    folder = edited(tmp_path, auto_map={"AutoConfig": "x.Y"}, torch_dtype="float32", _private=1, max_length=20)
    assert FusionCaptionerConfig.from_pretrained(folder).hidden_size == 512


@pytest.mark.parametrize("vision_type", VISION_CONFIGS)
def test_json_round_trip_keeps_every_field(tmp_path: Path, vision_type: str) -> None:
    vision_config = {"model_type": vision_type, **VISION_CONFIGS[vision_type]}
    config = tiny_config(vision_config=vision_config, fusion_type="gated", decoder_type="gru", word_dropout=0.25)
    config.save_pretrained(tmp_path)
    for loaded in (FusionCaptionerConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is FusionCaptionerConfig
        assert type(loaded.vision_config) is type(config.vision_config)
        assert loaded.vision_config.model_type == vision_type
        assert {name: loaded.vision_config.to_dict()[name] for name in VISION_CONFIGS[vision_type]} == VISION_CONFIGS[
            vision_type
        ]
        assert {name: loaded.to_dict()[name] for name in config.own_fields()} == {
            name: config.to_dict()[name] for name in config.own_fields()
        }
        assert (loaded.fusion_type, loaded.decoder_type, loaded.word_dropout) == ("gated", "gru", 0.25)


def test_vision_config_is_a_config_a_dict_or_resnet_50() -> None:
    given = ViTConfig(hidden_size=24, num_attention_heads=2)
    assert FusionCaptionerConfig(vision_config=given).vision_config.hidden_size == 24
    assert isinstance(FusionCaptionerConfig(vision_config=given.to_dict()).vision_config, ViTConfig)
    default = FusionCaptionerConfig().vision_config
    assert isinstance(default, ResNetConfig)
    assert (list(default.depths), list(default.hidden_sizes)) == ([3, 4, 6, 3], [256, 512, 1024, 2048])


def test_the_plain_preset_is_the_plain_captioner_and_can_be_overridden() -> None:
    plain = FusionCaptionerConfig.plain()
    assert (plain.vision_config.model_type, plain.hidden_size, plain.text_encoder_type) == ("resnet", 512, "lstm")
    assert (plain.fusion_type, plain.decoder_type, plain.decoder_input) == ("sum", "lstm", "joint_and_embedding")
    assert not plain.tie_word_embeddings
    overridden = FusionCaptionerConfig.plain(hidden_size=64, fusion_type="gated")
    assert (overridden.hidden_size, overridden.fusion_type, overridden.decoder_input) == (
        64,
        "gated",
        "joint_and_embedding",
    )


def test_audio_config_is_a_config_a_dict_or_absent(tmp_path: Path) -> None:
    assert FusionCaptionerConfig().audio_config is None
    for given in (WhisperConfig(d_model=16), {"model_type": "whisper", "d_model": 16}):
        FusionCaptionerConfig(audio_config=given, num_labels=3, class_weights=[1, 2.5, 0]).save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert isinstance(loaded.audio_config, WhisperConfig)
        assert (loaded.audio_config.d_model, loaded.class_weights) == (16, [1, 2.5, 0])
    FusionCaptionerConfig().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).audio_config is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pretraining_tp", 1),
        ("sep_token_id", 3),
        ("tokenizer_class", "BertTokenizer"),
        ("custom_pipelines", {}),
        ("finetuning_task", "captions"),
        ("decoder_start_token_id", 1),
        ("transformers.js_config", {"dtype": "q8"}),
        ("unsloth_version", "2026.1"),
    ],
)
def test_what_transformers_and_its_neighbours_set_is_saved_and_loaded(field: str, value: Any, tmp_path: Path) -> None:
    config = tiny_config()
    setattr(config, field, value)
    config.save_pretrained(tmp_path)
    assert getattr(FusionCaptionerConfig.from_pretrained(tmp_path), field) == value


def test_an_unknown_field_is_refused_when_it_is_set_or_saved(tmp_path: Path) -> None:
    config = tiny_config()
    for name in ("note", "hidden_szie"):
        with pytest.raises(ValueError, match=rf"`{name}` \(1\) is not a field of FusionCaptionerConfig"):
            setattr(config, name, 1)
        with pytest.raises(ValueError, match=name):
            config.update({name: 1})
    config.vision_config.note = 1
    with pytest.raises(ValueError, match=r"`vision_config.note` \(1\) is not a field of ResNetConfig"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("config.json"))

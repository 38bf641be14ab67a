"""Quantised and offloaded weights: every head computes with them as with its own."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from tiny_models import audio_config, log_mel, pixels, sounds, tiny_head, tiny_model, tokens
from torch.ao.quantization import quantize_dynamic
from transformers import BitsAndBytesConfig, TorchAoConfig

from fusion_captioner import (
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerForImageTextRetrieval,
    FusionCaptionerForMultipleChoice,
    FusionCaptionerForSequenceClassification,
    FusionCaptionerModel,
)
from fusion_captioner.placed_weights import compute_dtype

HEADS = [
    FusionCaptionerModel,
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerForImageTextRetrieval,
    FusionCaptionerForSequenceClassification,
    FusionCaptionerForMultipleChoice,
]
# every weight that is read outside of the module that holds it
FIELDS: dict[str, Any] = {
    "max_frames": 2,
    "contrastive_loss_weight": 1.0,
    "matching_loss_weight": 1.0,
    "audio_config": audio_config(),
}
# 4-bit products want sizes that are multiples of 64
WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "vocab_size": 64,
    "projection_dim": 64,
    "intermediate_size": 64,
    "vision_config": {"model_type": "resnet", "embedding_size": 64, "hidden_sizes": [64, 64], "depths": [1, 1]},
}
MIXTURES = [("attention", "lstm"), ("concat", "gru"), ("co_attention", "transformer")]


def results(model) -> list[torch.Tensor]:
    """All tensors of one call, the loss among them."""
    inputs: dict[str, Any] = {"pixel_values": pixels(2, 2), "input_ids": tokens()}
    if isinstance(model, FusionCaptionerForMultipleChoice):
        inputs |= {"input_ids": tokens(4).view(2, 2, -1), "labels": torch.tensor([0, 1])}
    elif isinstance(model, FusionCaptionerForSequenceClassification):
        inputs |= {"labels": torch.tensor([0, 1])}
    elif isinstance(model, FusionCaptionerForConditionalGeneration):
        inputs |= {"labels": tokens()}
    if isinstance(model, FusionCaptionerForImageTextRetrieval):
        inputs |= {"return_loss": True}
    else:
        inputs |= {"input_features": log_mel(sounds(100, 900))}
    torch.manual_seed(0)  # the matching term draws its negatives
    with torch.no_grad():
        return [value for value in model(**inputs).to_tuple() if isinstance(value, torch.Tensor)]


def logits(model, **options) -> torch.Tensor:
    """Those before each word; the words are always the same ones."""
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}
    settings["prefix_allowed_tokens_fn"] = lambda row, ids: [2 + len(ids)]
    return torch.stack(model.generate(pixel_values=pixels(), **settings, **options).logits).float()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_heads_compute_the_same(head: Any, place: str, tmp_path: Path) -> None:
    model = tiny_head(head, **FIELDS)
    expected = results(model)
    if place == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    torch.testing.assert_close(results(model), expected)


@pytest.mark.parametrize(("fusion_type", "layer_type"), MIXTURES)
def test_captions_by_offloaded_weights_are_the_same(fusion_type: str, layer_type: str, tmp_path: Path) -> None:
    model = tiny_model(fusion_type=fusion_type, text_encoder_type=layer_type, decoder_type=layer_type)
    model.save_pretrained(tmp_path / "saved")
    on_disk = FusionCaptionerForConditionalGeneration.from_pretrained(
        tmp_path / "saved", device_map={"": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    expected = {beams: logits(model, num_beams=beams) for beams in (1, 2)}
    on_cpu = copy.deepcopy(model)
    cpu_offload(on_cpu, execution_device=torch.device("cpu"))
    for offloaded in (on_disk, on_cpu):
        assert next(offloaded.parameters()).is_meta
        assert offloaded.device == torch.device("cpu")
        for beams in (1, 2):
            torch.testing.assert_close(logits(offloaded, num_beams=beams), expected[beams])


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("head", HEADS)
def test_what_does_not_fit_into_memory_is_placed_on_disk(head: Any, share: float, tmp_path: Path) -> None:
    model = tiny_head(head, **FIELDS)
    model.save_pretrained(tmp_path / "saved")
    size = sum(parameter.nbytes for parameter in model.parameters())
    placed = head.from_pretrained(
        tmp_path / "saved", device_map="auto", max_memory={"cpu": int(share * size)}, offload_folder=tmp_path / "disk"
    )
    assert "disk" in placed.hf_device_map.values()
    torch.testing.assert_close(results(placed), results(model))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("layers", [{torch.nn.Linear}, None])
@pytest.mark.parametrize(("fusion_type", "layer_type"), MIXTURES)
def test_captions_by_dynamically_quantised_weights(fusion_type: str, layer_type: str, layers: set | None) -> None:
    model = tiny_model(fusion_type=fusion_type, text_encoder_type=layer_type, decoder_type=layer_type)
    quantised = quantize_dynamic(model, layers)
    assert not any(type(module) is torch.nn.Linear for module in quantised.modules())
    near(logits(quantised), logits(model))


def near(quantised: torch.Tensor, exact: torch.Tensor, share: float = 0.2) -> None:
    """Not the same, or nothing was quantised, and not far."""
    assert 0 < (quantised - exact).abs().mean() < share * exact.std()


QUANTISED = ("bitsandbytes 8", "bitsandbytes 4", "torchao")


def quantisation(kind: str) -> BitsAndBytesConfig | TorchAoConfig:
    if kind == "torchao":
        quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        return TorchAoConfig(quantization.Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return BitsAndBytesConfig(load_in_8bit=kind.endswith("8"), load_in_4bit=kind.endswith("4"))


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("fusion_type", "layer_type"), MIXTURES)
def test_captions_by_quantised_weights(
    kind: str, dtype: torch.dtype, fusion_type: str, layer_type: str, tmp_path: Path
) -> None:
    config = quantisation(kind)
    model = tiny_model(fusion_type=fusion_type, text_encoder_type=layer_type, decoder_type=layer_type, **WIDE)
    model.save_pretrained(tmp_path)
    quantised = FusionCaptionerForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=config, dtype=dtype, device_map="cpu"
    )
    near(logits(quantised), logits(model), share=0.5 if kind.endswith("4") else 0.2)


@pytest.mark.parametrize("kind", ["bitsandbytes 8", "torchao"])  # the audio encoder is too small for 4 bits
@pytest.mark.parametrize("head", HEADS)
def test_every_head_computes_with_quantised_weights(head: Any, kind: str, tmp_path: Path) -> None:
    config = quantisation(kind)
    model = tiny_head(head, **FIELDS)
    model.save_pretrained(tmp_path)
    quantised = head.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
    for found, exact in zip(results(quantised), results(model), strict=True):
        assert (found - exact).abs().max() < 0.3 + 0.2 * exact.abs().max()


def test_quantised_weights_do_not_say_what_is_computed_in() -> None:
    class Quantised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)

    assert compute_dtype(Quantised(), torch.nn.Linear(2, 2).bfloat16()) == torch.bfloat16
    assert compute_dtype(Quantised()) == torch.float32

"""LoRA by the peft library's own `get_peft_model` on every head, with the layers that `lora_layers` names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import pixels, tiny_head, tokens

from fusion_captioner import (
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerForImageTextRetrieval,
    FusionCaptionerForMultipleChoice,
    FusionCaptionerForSequenceClassification,
)
from fusion_captioner.training.lora import lora_layers

peft = pytest.importorskip("peft")

INPUTS = {"pixel_values": pixels(), "input_ids": tokens()}
# head → inputs that give a loss, and fields of the config
HEADS: dict[type, tuple[dict[str, Any], dict[str, Any]]] = {
    FusionCaptionerForConditionalGeneration: (INPUTS | {"labels": tokens()}, {}),
    FusionCaptionerForImageTextRetrieval: (
        INPUTS | {"return_loss": True},
        {"contrastive_loss_weight": 1.0, "matching_loss_weight": 1.0},
    ),
    FusionCaptionerForSequenceClassification: (INPUTS | {"labels": torch.tensor([2, 0])}, {"num_labels": 3}),
    FusionCaptionerForMultipleChoice: (
        {"pixel_values": pixels(), "input_ids": tokens(6).view(2, 3, 6), "labels": torch.tensor([1, 2])},
        {},
    ),
}


def lora(head: type, **fields: str) -> tuple[Any, Any]:
    """The model and its config of LoRA."""
    model = tiny_head(head, **HEADS[head][1], **fields)
    return model, peft.LoraConfig(r=2, **lora_layers(model))


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        *((head, {}) for head in HEADS),
        *(
            (FusionCaptionerForSequenceClassification, {"fusion_type": name})
            for name in ("concat", "gated", "bilinear")
        ),
        (FusionCaptionerForSequenceClassification, {"fusion_type": "co_attention", "text_encoder_type": "gru"}),
        (
            FusionCaptionerForConditionalGeneration,
            {"fusion_type": "sum", "text_encoder_type": "transformer", "decoder_type": "transformer"},
        ),
    ],
)
def test_every_adapter_learns_and_comes_back_from_the_disk(head: type, fields: dict[str, str], tmp_path: Path) -> None:
    inputs = HEADS[head][0]
    model, config = lora(head, **fields)
    frozen = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(0)  # what negatives are drawn by
    with torch.no_grad():
        before = model(**inputs).loss
    adapted = peft.get_peft_model(model, config).eval()
    trainable = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert {name for name in trainable if "lora_" not in name and "modules_to_save" not in name} == set()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(trainable.values(), lr=0.002)
    for _ in range(2):  # the first step alone would leave LoRA's A without gradient: its B begins at 0
        torch.manual_seed(0)
        loss = adapted(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [name for name, weight in trainable.items() if weight.grad is None or not weight.grad.any()] == []
    torch.manual_seed(0)
    with torch.no_grad():
        after = adapted(**inputs).loss
    assert after < before

    adapted.save_pretrained(tmp_path)
    fresh, _ = lora(head, **fields)
    assert all(torch.equal(fresh.state_dict()[name], weight) for name, weight in frozen.items())
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).loss, after)


@pytest.mark.parametrize("layer_type", ["lstm", "gru"])
def test_recurrent_layers_that_are_trained_whole_generate_step_by_step(layer_type: str) -> None:
    fields = {"text_encoder_type": layer_type, "decoder_type": layer_type}
    model, _ = lora(FusionCaptionerForConditionalGeneration, **fields)
    config = peft.LoraConfig(r=2, target_modules=["region_projection"], modules_to_save=["recurrent"])
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name:
                weight.mul_(1.5)
    settings = {"pixel_values": pixels(), "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}

    def logits(**more: Any) -> torch.Tensor:
        output = adapted.generate(**settings, **more, return_dict_in_generate=True, output_logits=True)
        return torch.stack(output.logits)

    torch.testing.assert_close(logits(use_cache=True), logits(use_cache=False))
    with adapted.disable_adapter():
        plain = logits()
    assert (logits() - plain).abs().max() > 1e-3

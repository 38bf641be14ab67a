"""Types of what is computed once per image on torch."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_exports import Export, tiny_processor
from tiny_models import CONCEPTS, VISION_CONFIGS, pixels, tiny_model

from fusion_captioner import causal_layers
from fusion_captioner.cli import main
from fusion_captioner.inference import fused_convolutions
from fusion_captioner.inference.torch_captioner import TorchCaptioner


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("fields", [{}, {"fusion_type": "gated"}, CONCEPTS], ids=["plain", "pooled", "concepts"])
@torch.no_grad()
def test_what_is_computed_once_per_image_alone_is_bfloat16(tmp_path: Path, fields: dict[str, Any]) -> None:
    tiny_model(**fields).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    whole, half = (TorchCaptioner(str(tmp_path), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (whole.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert half.model.lm_head.weight.dtype == torch.float32
    regions = whole.model.get_image_hidden_states(pixels(2))
    pairs = [(regions, half.model.get_image_hidden_states(pixels(2)))]
    scores = [each.model.model.score_concepts(regions) for each in (whole, half)]
    if fields is CONCEPTS:
        pairs.append((scores[0], scores[1]))
    else:
        assert scores == [None, None]
    projected = [each.model.model.project_regions(regions, concept_logits=scores[0]) for each in (whole, half)]
    for expected, found in (*pairs, *zip(*projected, strict=True)):
        assert found.dtype == torch.float32
        assert 0 < (found - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fields", [{}, {"fusion_type": "concat"}, CONCEPTS], ids=["plain", "pooled", "concepts"])
def test_a_checkpoint_of_half_precision_keeps_its_type(
    tmp_path: Path, saved, dtype: str, fields: dict[str, Any]
) -> None:
    tiny_model(**fields).to(saved).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    model = TorchCaptioner(str(tmp_path), dtype=dtype).model
    assert model.generate(pixel_values=pixels(2), num_beams=2, max_new_tokens=3, min_new_tokens=3).shape == (2, 4)
    regions = model.get_image_hidden_states(pixels(2))
    concepts = model.model.score_concepts(regions)
    projected = model.model.project_regions(regions, concept_logits=concepts)
    assert {each.dtype for each in (*projected, model.lm_head.weight)} == {saved}


@pytest.mark.parametrize("moved", [torch.bfloat16, torch.float64])
def test_a_quickened_model_can_be_given_another_type(checkpoint: Path, moved: torch.dtype) -> None:
    for dtype in ("float32", "bfloat16"):
        model = TorchCaptioner(str(checkpoint), dtype=dtype).model
        expected = model.get_image_hidden_states(pixels(1))
        assert model.to(moved).generate(pixel_values=pixels(1), max_new_tokens=3).shape[0] == 1
        assert torch.equal(model.get_image_hidden_states(pixels(1)), expected)


def test_copies_of_a_quickened_model_are_models_of_their_own(tmp_path: Path) -> None:
    # without convolutions to pack, which have no copies
    vision_config = {"model_type": "vit", **VISION_CONFIGS["vit"]}
    tiny_model(vision_config=vision_config, **CONCEPTS).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    model = TorchCaptioner(str(tmp_path), dtype="bfloat16").model
    regions = model.get_image_hidden_states(pixels(1))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = copied.model.score_concepts(regions)
        assert torch.equal(before, model.model.score_concepts(regions))
        torch.nn.init.zeros_(copied.model.concept_head.classifier.weight)
        assert not torch.equal(copied.model.score_concepts(regions), before)
        assert torch.equal(model.model.score_concepts(regions), before)


def test_a_model_is_found_where_its_convolutions_are(checkpoint: Path) -> None:
    """`model.device` reads the first parameter, and `generate` asks for it: it must not be behind all layers."""
    model = TorchCaptioner(str(checkpoint)).model
    assert model.device == torch.device("cpu")
    assert next(model.named_parameters())[0].startswith("model.image_encoder.")


@pytest.mark.skipif(not causal_layers.CAN_PACK, reason="this build of torch has no packed products")
def test_what_projects_an_image_is_packed_for_further_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_layers, "MIN_WEIGHTS", 1)
    tiny_model(**CONCEPTS).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    model = TorchCaptioner(str(tmp_path), dtype="float32").model
    for _ in range(2):
        model.generate(pixel_values=pixels(1), max_new_tokens=2)
    for layer in (model.model.region_projection, model.model.concept_head.classifier, model.model.fusion.key_value):
        assert isinstance(model.kept_weights[layer.weight], causal_layers.PackedWeight)


def test_the_flag(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    export: Export,
    tmp_path: Path,
) -> None:
    photo = tmp_path / "photo.png"
    Image.linear_gradient("L").save(photo)
    asked = []
    monkeypatch.setattr(fused_convolutions, "faster_dtype", lambda device: asked.append(device) or torch.bfloat16)
    flags = ["caption", str(photo), "--max-new-tokens", "3", "--model"]
    assert main([*flags, str(checkpoint), "--dtype", "float32"]) == 0
    assert asked == []
    assert main([*flags, str(checkpoint)]) == 0
    assert asked == ["cpu"]
    assert [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()] == [str(photo)] * 2
    assert main([*flags, str(export("onnx")), "--dtype", "float32"]) == 2
    assert "--dtype (float32) is for torch" in capsys.readouterr().err


def test_a_text_that_is_not_utf_8_is_refused(checkpoint: Path) -> None:
    captioner = TorchCaptioner(str(checkpoint))
    for texts in ({"prompt": "caf\udce9"}, {"prompt": "", "bad_words": ["\ud83d"]}):
        with pytest.raises(ValueError, match="is not UTF-8"):
            captioner.caption([Image.new("RGB", (8, 8))], **texts)

"""Types of the image encoder on torch."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_exports import Export, tiny_processor
from tiny_models import pixels, tiny_model

from fusion_captioner.cli import main
from fusion_captioner.inference import fused_convolutions
from fusion_captioner.inference.torch_captioner import TorchCaptioner


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_the_image_encoder_alone_is_bfloat16(checkpoint: Path) -> None:
    whole, half = (TorchCaptioner(str(checkpoint), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (whole.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert half.model.lm_head.weight.dtype == torch.float32
    with torch.no_grad():
        expected, found = (each.model.get_image_hidden_states(pixels(2)) for each in (whole, half))
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() / expected.norm() < 0.05


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

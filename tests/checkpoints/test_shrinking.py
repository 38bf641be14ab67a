from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion_captioner import FusionCaptionerImageProcessor, FusionCaptionerProcessor
from fusion_captioner.cli import main


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tiny_model().save_pretrained(tmp_path / "whole")
    image_processor = FusionCaptionerImageProcessor(size={"height": 32, "width": 32})
    FusionCaptionerProcessor(image_processor, tiny_tokenizer()).save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "README.md").write_text("its card")
    return tmp_path / "whole"


@pytest.mark.parametrize("flags", [[], ["--without-code"]])
def test_half_the_bytes_are_loaded_as_float32(checkpoint: Path, tmp_path: Path, flags: list[str]) -> None:
    out = tmp_path / "small"
    assert main(["shrink", str(checkpoint), "--out", str(out), *flags]) == 0
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (out, checkpoint)]
    assert sizes[0] < 0.75 * sizes[1]
    small, whole = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (out, checkpoint))
    assert small.dtype == torch.float32
    for (name, weight), expected in zip(small.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(weight, expected.half().float()), name
    assert AutoProcessor.from_pretrained(out).tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert (out / "README.md").read_text() == "its card"
    assert any(out.glob("*.py")) == (not flags)
    assert ("auto_map" in (out / "config.json").read_text()) == (not flags)


def test_weights_that_float16_cannot_hold_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    with torch.no_grad():
        model.lm_head.bias[3] = 1e6
    model.save_pretrained(checkpoint)
    assert main(["shrink", str(checkpoint), "--out", str(tmp_path / "small")]) == 2
    assert "'lm_head.bias' exceeds the range of float16" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_card_is_copied_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "README.md").write_bytes(b"caf\xe9")
    assert main(["shrink", str(checkpoint), "--out", str(tmp_path / "small")]) == 0
    assert (tmp_path / "small" / "README.md").read_bytes() == b"caf\xe9"

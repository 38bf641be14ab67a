"""bfloat16 is taken where it is in hardware and faster, and nowhere else."""

from pathlib import Path

import pytest
import torch

from fusion_captioner import hardware
from fusion_captioner.hardware import faster_dtype, has_bfloat16


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A function that makes this machine one without GPU, whose `/proc/cpuinfo` is as given."""

    def pretend(cpuinfo: str | None) -> None:
        file = tmp_path / "cpuinfo"
        file.unlink(missing_ok=True)
        if cpuinfo is not None:
            file.write_text(cpuinfo)
        monkeypatch.setattr(hardware, "Path", lambda name: file)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)

    return pretend


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16\n", True),
        ("flags\t\t: fpu avx512_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw avx512_vnni\n", False),
        ("model name\t: bf16\n", False),
        (None, False),
    ],
)
def test_the_processors_flags_tell(processor, cpuinfo: str | None, expected: bool) -> None:
    processor(cpuinfo)
    assert has_bfloat16() is expected


def test_a_gpu_is_asked_itself(processor, monkeypatch: pytest.MonkeyPatch) -> None:
    processor("flags\t: avx512_bf16\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for answer in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, answer=answer: answer)
        assert has_bfloat16() is answer
        assert faster_dtype() == (torch.bfloat16 if answer else torch.float32)


def test_beside_a_gpu_the_processor_is_asked_for_itself(processor, monkeypatch: pytest.MonkeyPatch) -> None:
    processor("flags\t: avx2\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert has_bfloat16() and not has_bfloat16("cpu")
    assert faster_dtype("cpu") == torch.float32


def test_what_is_clearly_faster_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 1.1, torch.bfloat16: 1.0}
    monkeypatch.setattr(hardware, "_product_seconds", lambda dtype, size: seconds[dtype])
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert faster_dtype() == torch.float32
    seconds[torch.float32] = 2.0
    assert faster_dtype() == torch.bfloat16
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: False)
    assert faster_dtype() == torch.float32

"""What this machine's processors do well."""

import time
from pathlib import Path

import torch

# bfloat16 rounds; it must save so much time to be worth it.
WORTHWHILE = 1.2
# Flags of processors that multiply bfloat16: x86 and Arm.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def _default_device() -> str:
    """The kind of device that training takes: the accelerator, or the processor where there is none."""
    if torch.cuda.is_available():
        return "cuda"
    return "other" if torch.accelerator.is_available() else "cpu"


def has_bfloat16(device: str | None = None) -> bool:
    """
    Whether a device multiplies bfloat16 in hardware. torch itself answers for CPUs whether it can compute in bfloat16,
    which it also emulates.

    Args:
        device: kind of device, such as `"cpu"`; by default the GPU, or where there is none the processor. Of other
            accelerators nothing is known, and the answer is no.
    """
    device = device or _default_device()
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool(BFLOAT16_FLAGS & _processor_flags())


def _processor_flags() -> set[str]:
    """Those that Linux lists; none elsewhere."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    listed = (line.partition(":") for line in lines)
    return {flag for name, _, flags in listed if name.strip() in ("flags", "Features") for flag in flags.split()}


def faster_dtype(device: str | None = None, size: int = 768) -> torch.dtype:
    """
    bfloat16 where a device has it in hardware and multiplies matrices in it clearly faster than in float32,
    otherwise float32.

    It is measured, with the threads that torch has: some processors have the instructions and gain nothing by them.

    Args:
        device: see [`has_bfloat16`].
        size: rows and columns of the matrices.
    """
    device = device or _default_device()
    if not has_bfloat16(device):
        return torch.float32
    if device == "cuda":
        return torch.bfloat16
    seconds = {dtype: _product_seconds(dtype, size) for dtype in (torch.float32, torch.bfloat16)}
    is_worth_it = seconds[torch.float32] > WORTHWHILE * seconds[torch.bfloat16]
    return torch.bfloat16 if is_worth_it else torch.float32


def _product_seconds(dtype: torch.dtype, size: int) -> float:
    matrix = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return best

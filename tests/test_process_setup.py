"""Freed buffers stay with the process: in a fresh one, because the setting cannot be taken back."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from fusion_captioner.process_setup import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else True
assert told
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 64 * 2**20
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    buffer = libc.malloc(size)
    ctypes.memset(buffer, 1, size)
    libc.free(buffer)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
def test_a_buffer_is_mapped_once() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", PROGRAM, way], check=True, capture_output=True).stdout)
        for way in ("as usual", "keep")
    }
    assert faults["keep"] * 3 < faults["as usual"]

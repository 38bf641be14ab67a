"""Large buffers that are freed stay with the process, which on Linux makes CPU training and encoding up to twice as fast.

glibc gives every buffer above some hundred KiB back to the kernel as soon as it is freed. A network's activations are
such buffers: each layer then waits for the kernel to map, and clear, the same pages again.
"""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed buffers of any size. For commands: a library must not change its host's allocator.

    Returns:
        whether it could be told; other C libraries have no such setting, and run as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    return mallopt is not None and all(mallopt(parameter, value) == 1 for parameter, value in settings)

"""Settings of a command for its own process, which a library must leave alone: memory, and notes of libraries."""

import ctypes
import errno
import io
import os
import sys
from contextlib import suppress

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """
    Let glibc reuse freed buffers of any size, which makes CPU training and encoding up to twice as fast on Linux.

    By default glibc gives every buffer above some hundred KiB back to the kernel as soon as it is freed. A network's
    activations are such buffers: each layer then waits for the kernel to map, and clear, the same pages again.

    Returns:
        whether this C library has the setting; others run as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((M_MMAP_MAX, 0), (M_ARENA_MAX, 1), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    return mallopt is not None and all(mallopt(parameter, value) == 1 for parameter, value in settings)


class _ClosedOutput(io.TextIOBase):
    """Stands for a standard output that was closed before the command began."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "is closed", "standard output")


def open_closed_streams() -> None:
    """
    Cron and daemons start commands with closed streams. Files that are opened would then get the numbers of the
    streams, and libraries would write their notes into them. Notes of the command go nowhere; results that cannot be
    written are an error.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # which gets the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the process)
    if sys.stdout is None:
        sys.stdout = _ClosedOutput()


def keep_stderr_quiet(reads_data: bool) -> None:
    """
    Switch off progress bars and notes of libraries that would bury a command's own; a terminal still shows bars of
    long work.

    Args:
        reads_data: the command uses `datasets`, which takes a second to load.
    """
    from huggingface_hub.utils import enable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error
    from transformers.utils.logging import disable_progress_bar

    set_verbosity_error()  # a line for each of five vain attempts to reach the Hub
    disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()
    if not reads_data:
        return
    from datasets import disable_progress_bars
    from datasets.utils.logging import CRITICAL, set_verbosity

    set_verbosity(CRITICAL)  # it logs the errors that it raises
    if not sys.stderr.isatty():
        disable_progress_bars()

"""How far a command is, for whoever watches."""

import sys
from contextlib import nullcontext
from typing import Any, TextIO


class Progress:
    """
    A bar on stderr with images a second and the time that is left, and lines that do not tear it.

    Args:
        total: images.
        done: images that were done before.
        show: False for no bar; outside a terminal there is none anyway.
    """

    def __init__(self, total: int, done: int = 0, show: bool = True) -> None:
        self._bar: Any = None
        if show and sys.stderr.isatty():
            from tqdm import tqdm  # here, since most runs have no terminal

            bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
            self._bar = tqdm(total=total, initial=done, unit=" images", bar_format=bar_format, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def print(self, line: str, file: TextIO) -> None:
        """A line on stdout or stderr, at once."""
        with nullcontext() if self._bar is None else self._bar.external_write_mode(file=file):
            print(line, file=file, flush=True)

    def advance(self, images: int) -> None:
        """So many more are done."""
        if self._bar is not None:
            self._bar.update(images)

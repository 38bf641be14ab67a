"""Large files by URL: continued where they were broken off, and checked."""

import os
import re
import time
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path
from urllib.error import HTTPError

from fusion_captioner.files import INCOMPLETE
from fusion_captioner.image_downloads import Answer, open_url

DAMAGED = ".damaged"
# Pauses after failures that have brought nothing, in seconds; then it is given up.
PAUSES = (1, 3, 10, 30)

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def fetch(
    url: str, target: Path, size: int, progress: Callable[[int], object], pauses: tuple[float, ...] = PAUSES
) -> Path:
    """
    The content of a URL, in `TARGET.incomplete`, which is continued where an earlier run has left it.

    Args:
        target: the name that the caller gives the file when it has checked it.
        size: that the file must have, in bytes.
        progress: called with the number of bytes that have been added.

    Returns:
        the file, with all its bytes.

    Raises:
        OSError: the server cannot be reached, or the file cannot be written; the message names what is there, with
            which the next run goes on.
        ValueError: the server has a file of another size.
    """
    part = target.with_name(target.name + INCOMPLETE)
    if _size(part) > size:
        part.replace(target.with_name(target.name + DAMAGED))
    failures = 0
    progress(_size(part))
    while (have := _size(part)) < size:
        try:
            with open_url(url, {"Range": f"bytes={have}-"} if have else None) as answer:
                start = _start(answer, url, have, size)
                progress(start - have)
                _write(answer, part, start, size, progress)
            if _size(part) < size:  # without a Content-Length, a connection that breaks off looks like the end
                raise OSError(f"{url}: the answer ended before the file did")
        except OSError as error:
            failures = 0 if _size(part) > have else failures + 1
            if isinstance(error, _DiskError) or _is_final(error) or failures > len(pauses):
                there = f"; {_size(part):,} of {size:,} bytes are there" if _size(part) else ""
                again = "; repeat the command, which goes on from there" if there else ""
                raise type(error)(f"{error}{there}{again}") from error
            time.sleep(pauses[failures - 1] if failures else 0)
    return part


class _DiskError(OSError):
    """It is this machine that cannot go on."""


def _start(answer: Answer, url: str, have: int, size: int) -> int:
    """Where the content of an answer begins; a server that gives no parts gives the whole.

    Raises:
        ValueError: the file has another size.
    """
    start, total = 0, answer.headers.get("Content-Length")
    if answer.status == 206:
        match = _RANGE.match(answer.headers.get("Content-Range", ""))
        if match is None or int(match[1]) > have:
            raise OSError(f"{url}: the server sends another part than was asked for")
        start, total = int(match[1]), None if match[2] == "*" else match[2]
    if total is not None and total.isdecimal() and int(total) != size:
        raise ValueError(
            f"{url}: has {int(total):,} bytes, and {size:,} are known; it is not the file that was published."
        )
    return start


def _write(answer: Answer, part: Path, start: int, size: int, progress: Callable[[int], object]) -> None:
    try:
        file = part.open("ab")
        file.truncate(start)
    except OSError as error:
        raise _DiskError(f"{part}: cannot be written ({error.strerror})") from error
    with file:
        written = start
        for chunk in answer.chunks:
            chunk = chunk[: size - written]
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise _DiskError(f"{part}: cannot be written ({error.strerror}); make room there") from error
            written += len(chunk)
            progress(len(chunk))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _is_final(error: OSError) -> bool:
    """Whether the server would answer the same again."""
    return isinstance(error.__cause__, HTTPError) and error.__cause__.code < 500 and error.__cause__.code != 429


def checksum(file: Path, kind: str) -> str:
    """`"md5:..."` or another kind that hashlib has, of a file."""
    with file.open("rb") as content:
        return f"{kind}:{file_digest(content, kind).hexdigest()}"


def accept(part: Path, target: Path, expected: str | None) -> str:
    """
    Check what [`fetch`] has fetched, and give it its name.

    Args:
        expected: its checksum, or None.

    Returns:
        its checksum.

    Raises:
        ValueError: it is another one; the file is kept under the name `TARGET.damaged`.
    """
    found = checksum(part, expected.partition(":")[0] if expected else "sha256")
    if expected is not None and found != expected:
        damaged = target.with_name(target.name + DAMAGED)
        part.replace(damaged)
        raise ValueError(
            f"{target}: its checksum is {found}, and {expected} was expected; it is kept as {damaged.name}. Repeat "
            "the command, which fetches it anew."
        )
    with part.open("rb+") as content:
        os.fsync(content.fileno())
    part.replace(target)
    return found

"""Locks: one process at a time writes an output, or makes what many read. Neither torch nor NumPy is imported here."""

import logging
import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fusion_captioner.files import INCOMPLETE, check_output_folder, missing_parents, real_path, temporary_stem

logger = logging.getLogger(__name__)

# what the text in a lock begins with
HOLDER = b"process "


@contextmanager
def lock_output(path: str | Path, name: str) -> Iterator[None]:
    """
    Only one process at a time writes an output; the others are refused at once.

    The lock is the file `PATH.lock`, or `PATH/.lock` where the folder around `PATH` is read-only. The operating system
    releases it when its process ends, however that happens. What a killed process left half-written is removed.

    Args:
        path: file or folder; it need not exist.
        name: of the flag or setting that names it, for the message.

    Raises:
        OSError: another process holds the lock; the message names that process. Or the file with the lock's name is
            not a lock of this package.
    """
    from filelock import FileLock, Timeout  # takes longer to load than everything above

    target = real_path(path)
    made = missing_parents(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    file = lock_file(target)
    holder = _read_holder(file)
    if not _is_ours(file):
        raise OSError(f"{name} ({path}): {file} is not a lock of this package; move it, or name another output.")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(
            f"{name} ({path}): is being written by {_read_holder(file) or holder}; wait until it has ended, or name "
            "another output."
        ) from None
    try:
        _write_holder(file)
        _remove_incomplete(target)
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        lock.release()
        for parent in made:
            with suppress(OSError):  # it is not empty any more
                parent.rmdir()


@contextmanager
def lock_output_folder(path: str | Path, name: str, inputs: Iterable[str | Path] = ()) -> Iterator[None]:
    """[`lock_output`] of a folder that [`check_output_folder`] accepts."""
    check_output_folder(path, name, inputs)
    with lock_output(path, name):
        yield


@contextmanager
def wait_for_lock(file: Path, work: str) -> Iterator[None]:
    """
    Only one process at a time holds the lock `file`; the others wait, and log for which process.

    Args:
        work: what that process does, for the message.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for %s, which %s", _read_holder(file), work)
        lock.acquire()
    try:
        _write_holder(file)
        yield
    finally:
        with suppress(OSError):
            file.write_bytes(b"")  # folders with a lock in them are copied and shared
        lock.release()


def lock_file(target: Path) -> Path:
    """The file that [`lock_output`] locks."""
    beside = target.with_name(f"{target.name}.lock")
    return beside if os.access(target.parent, os.W_OK) or not target.is_dir() else target / ".lock"


def lock_holder(file: Path) -> str | None:
    """The process that holds the lock `file`, or None. The lock of a killed process is removed."""
    from filelock import FileLock, Timeout

    if not file.exists() or not _is_ours(file):
        return None
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _read_holder(file)
    with suppress(OSError):
        file.unlink()
    lock.release()
    return None


def _write_holder(file: Path) -> None:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    with suppress(OSError):  # Windows lets nobody write a locked file
        file.write_text(f"process {os.getpid()} on {socket.gethostname()} ({command[:200]})", encoding="utf-8")


def _read_holder(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8") or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def _is_ours(file: Path) -> bool:
    """Whether the lock `file` is missing, or holds nothing but what [`_write_holder`] or a part of it wrote: locking
    empties the file, and unlocking removes it."""
    try:
        beginning = file.read_bytes()[: len(HOLDER)]
    except FileNotFoundError:
        return True
    except PermissionError:  # Windows lets nobody read a locked file
        return os.name == "nt"
    return HOLDER.startswith(beginning)


def _remove_incomplete(target: Path) -> None:
    """Remove what killed processes left of `target`, whose lock this process holds."""
    of_target = re.compile(rf"{re.escape(temporary_stem(target.name))}\.[0-9a-f]{{8}}{re.escape(INCOMPLETE)}")
    folders = [target.parent, target] if target.is_dir() else [target.parent]
    for path in [path for folder in folders for path in folder.iterdir() if of_target.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

"""Files that commands write and read: checked first, written atomically, locked, prefetched, fingerprinted.

Damage is found before a file is parsed: caches end with a checksum, and folders hold the digests of their files.

A file is written under another name (`NAME.RANDOM.incomplete`), flushed to the disk and renamed: it is there whole, or
as it was before. A folder is filled in the same way. Neither torch nor NumPy is imported here.
"""

import errno
import json
import logging
import mmap
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn, TypeVar

logger = logging.getLogger(__name__)

INCOMPLETE = ".incomplete"
DIGESTS = "digests.json"
CHECKSUM_SIZE = 16  # bytes
# Keys of configs that name classes, places and versions, but change no result. The weights have their own types.
VOLATILE_KEYS = ("processor_class", "auto_map", "transformers_version", "_name_or_path", "architectures", "dtype")

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_output_file(path: str, flag: str) -> None:
    """
    Make sure that `path` can be written, before hours go into its content; nothing is left there.

    Raises:
        FileNotFoundError: its folder does not exist.
        OSError: it is a folder, a device or a pipe, or writing is not allowed.
    """
    target = _real(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{flag} ({path}): the folder {target.parent} does not exist; make it first.")
    if os.path.exists(target) and not os.path.isfile(target):  # unlike Path's, they do not raise on too long a name
        kind = "a folder" if os.path.isdir(target) else "no ordinary file"
        raise OSError(f"{flag} ({path}): is {kind}; name a file.")
    temporary = _temporary(target)
    try:
        temporary.write_bytes(b"")
        temporary.unlink()
    except OSError as error:
        raise OSError(f"{flag} ({path}): cannot be written ({error.strerror}); name another file.") from error


def check_output_folder(path: str | Path, name: str) -> None:
    """
    Make sure that the folder `path` exists and can be written, or can be made; nothing is left there.

    Raises:
        ValueError: it is a file, or lies below one.
        OSError: writing is not allowed.
    """
    ancestor = _existing(_real(path))
    if not ancestor.is_dir():
        raise ValueError(f"{name} ({path}): {ancestor} is a file; name a folder.")
    try:
        tempfile.TemporaryDirectory(dir=ancestor, prefix=".fusion-captioner-").cleanup()
    except OSError as error:
        raise OSError(f"{name} ({path}): cannot be written ({error.strerror}); name another folder.") from error


def check_no_link(path: Path) -> None:
    """
    Strangers' photos may come with links, and what they lead to would be written.

    Raises:
        FileExistsError: `path` is a link.
    """
    if path.is_symlink():
        raise FileExistsError(f"{path}: is a link, through which nothing is written; move it.")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """
    A temporary name to write a file under; at the end it is flushed to the disk and renamed to `path`.

    If anything goes wrong, the temporary file is removed and `path` stays as it was. A link stays a link: what it
    leads to is replaced.

    Raises:
        OSError: the file cannot be written, such as on a full disk; the message names it.
    """
    target = _real(path)
    temporary = _temporary(target)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _raise_with_name(path, temporary, error)


def write_text(path: str | Path, text: str) -> None:
    """
    Write `text` as UTF-8, atomically; characters that UTF-8 does not have become `?`.

    Raises:
        OSError: as [`atomic_write`].
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: str | Path, document: Any) -> None:
    """Write `document` as indented JSON; see [`write_text`]."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(folder: str | Path, last: str = "config.json") -> Iterator[Path]:
    """
    A new folder to fill; at the end it becomes `folder`. If anything goes wrong, nothing of it is left.

    Where `folder` exists, its files of the same names are replaced, and others stay.

    Args:
        folder: made where it does not exist, with its parents.
        last: the file without which the folder is not loaded. In an existing folder it is removed first and comes back
            last.

    Raises:
        OSError: a file cannot be written, such as on a full disk; the message names the folder.
    """
    target = _real(folder)
    exists = target.is_dir()
    # inside an existing folder, whose parent may be read-only or another disk
    temporary = _temporary(target / target.name if exists else target)
    made = [] if exists else _missing_parents(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        if not exists:
            temporary.replace(target)
            return
        (target / last).unlink(missing_ok=True)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == last):
            if path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
            else:
                path.replace(target / path.name)
        shutil.rmtree(temporary)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        _raise_with_name(folder, temporary, error)


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
        OSError: another process holds the lock; the message names that process.
    """
    from filelock import FileLock, Timeout  # takes longer to load than everything above

    target = _real(path)
    made = _missing_parents(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    file = lock_file(target)
    lock = FileLock(file)
    holder = _read_holder(file)
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
def lock_output_folder(path: str | Path, name: str) -> Iterator[None]:
    """[`lock_output`] of a folder that [`check_output_folder`] accepts."""
    check_output_folder(path, name)
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

    if not file.exists():
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


def prefetch(
    items: Iterable[Item], function: Callable[[Item], Result], ahead: int, workers: int
) -> Iterator[tuple[Item, Result]]:
    """
    Each item with what `function` makes of it, in order, while the caller works on those before.

    Threads, not processes: Pillow releases the GIL while it decodes and resizes, as the runtimes do while they
    compute, and threads need no second interpreter and no copies of pictures through pipes.

    Args:
        items: taken one by one, as there is room.
        function: called in threads; what it raises is raised here.
        ahead: results that may be waiting or in the making, apart from the one that is given out.
        workers: threads.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as threads:
        try:
            for item in items:
                waiting.append((item, threads.submit(function, item)))
                if len(waiting) > ahead:
                    item, result = waiting.popleft()
                    yield item, result.result()
            while waiting:
                item, result = waiting.popleft()
                yield item, result.result()
        finally:
            for _, result in waiting:
                result.cancel()


def without_volatile_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """A config without its volatile keys, at any depth."""
    return {
        key: without_volatile_keys(value) if isinstance(value, Mapping) else value
        for key, value in document.items()
        if key not in VOLATILE_KEYS
    }


def fingerprint(about: Any = None, weights: Mapping[str, Any] | None = None, digest_size: int = 8) -> str:
    """
    A hash of settings and weights, in hexadecimal.

    Args:
        about: anything that JSON holds; other values by their text.
        weights: a state dict of torch: names, types, shapes and values count.
        digest_size: bytes.
    """
    digest = blake2b(digest_size=digest_size)
    if about is not None:
        digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    if weights:
        import torch

        for name, tensor in sorted(weights.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # as bytes, since NumPy has no bfloat16
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_bytes(content: bytes) -> str:
    """128 bits of BLAKE2b, in hexadecimal."""
    return blake2b(content, digest_size=16).hexdigest()


def hash_file(path: Path) -> str:
    """[`hash_bytes`] of a file's content."""
    from hashlib import file_digest

    with path.open("rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()


def append_checksum(path: Path) -> None:
    """End a file with a checksum of what it holds, for [`read_checked`]. Readers of Arrow streams ignore it."""
    with path.open("rb+") as file:
        checksum = _checksum(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        file.seek(0, os.SEEK_END)
        file.write(checksum)


def read_checked(path: Path) -> memoryview:
    """
    The content of a file in front of its checksum, memory-mapped. A cache that fails here is made again.

    Raises:
        ValueError: the checksum is another one, or there is none.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size - CHECKSUM_SIZE
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size > 0 else None
    if whole is None or whole[size:] != _checksum(whole[:size]):
        raise ValueError(f"{path}: is damaged: its checksum does not fit")
    return whole[:size]


def write_digests(folder: Path) -> None:
    """Write the digests of all files of a folder into it; the last step of saving it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    write_json(folder / DIGESTS, {path.relative_to(folder).as_posix(): hash_file(path) for path in files})


def digest_problem(folder: Path) -> str | None:
    """Which file of a folder is missing or differs from its digest, in words, or `None`."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        if not isinstance(digests, dict) or not digests:
            return f"{DIGESTS} is damaged"
        missing = [name for name in digests if not (folder / name).is_file()]
    except FileNotFoundError:
        return f"{DIGESTS} is missing"
    except (OSError, ValueError, RecursionError):
        return f"{DIGESTS} is damaged"
    if missing:
        return f"{missing[0]} is missing"
    damaged = [name for name, digest in digests.items() if hash_file(folder / name) != digest]
    return f"{damaged[0]} is damaged" if damaged else None


def _checksum(content: Any) -> bytes:
    from xxhash import xxh3_128_digest  # ten times as fast as BLAKE2b, and caches are large

    return xxh3_128_digest(content)


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _temporary(target: Path) -> Path:
    # a name of its own: several processes and threads may write the same file
    return target.with_name(f"{target.name}.{os.urandom(4).hex()}{INCOMPLETE}")


def _existing(path: Path) -> Path:
    """The nearest ancestor that exists, or `path` itself."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _missing_parents(path: Path) -> list[Path]:
    """Ancestors that do not exist, the deepest first."""
    existing = _existing(path.parent)
    return [parent for parent in path.parents if existing in parent.parents]


def _raise_with_name(path: str | Path, temporary: Path, error: BaseException) -> NoReturn:
    """Raise `error`, and where writing `temporary` is its cause, with the name of what could not be written."""
    reason = None
    if isinstance(error, OSError):
        if error.filename is None or str(error.filename).startswith(str(temporary)):
            reason = error.strerror
    elif (full := os.strerror(errno.ENOSPC)) in str(error):  # libraries in Rust and C++ have errors of their own
        reason = full
    if reason is None:
        raise error
    is_denied = isinstance(error, PermissionError)
    fix = "make the folder writable" if is_denied else "make room there"
    raise OSError(f"{path}: cannot be written ({reason}); {fix}, or name another.") from error


def _write_holder(file: Path) -> None:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    with suppress(OSError):  # Windows lets nobody write a locked file
        file.write_text(f"process {os.getpid()} on {socket.gethostname()} ({command[:200]})", encoding="utf-8")


def _read_holder(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8") or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def _remove_incomplete(target: Path) -> None:
    """Remove what killed processes left of `target`, whose lock this process holds."""
    of_target = re.compile(rf"{re.escape(target.name)}\.[0-9a-f]{{8}}{re.escape(INCOMPLETE)}")
    folders = [target.parent, target] if target.is_dir() else [target.parent]
    for path in [path for folder in folders for path in folder.iterdir() if of_target.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

"""
Files and folders that commands write: checked first, then written whole or not at all.

A file is written under another name (`NAME.RANDOM.incomplete`, where a long `NAME` is cut), flushed to the disk and
renamed: it is there whole, or as it was before. A folder is filled in the same way. Neither torch nor NumPy is
imported here.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE
from typing import Any, NoReturn
from zlib import crc32

INCOMPLETE = ".incomplete"
MAX_NAME = 255  # bytes, of file systems


def check_output_file(path: str, flag: str) -> None:
    """
    Make sure that `path` can be written, before hours go into its content; nothing is left there.

    Raises:
        ValueError: the name is empty.
        FileNotFoundError: its folder does not exist.
        OSError: it is a folder, a device or a pipe, or writing is not allowed.
    """
    if not path:
        raise ValueError(f"{flag} ({path!r}) is empty; name a file.")
    target = real_path(path)
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


def check_output_folder(path: str | Path, name: str, inputs: Iterable[str | Path] = ()) -> None:
    """
    Make sure that the folder `path` exists and can be written, or can be made; nothing is left there.

    Args:
        name: what messages call it.
        inputs: folders that are read, and so must not be replaced; names on the Hub may be among them.

    Raises:
        ValueError: the name is empty, the folder is one of `inputs`, or it is a file, or lies below one.
        OSError: writing is not allowed.
    """
    if not str(path):
        raise ValueError(f"{name} ({str(path)!r}) is empty; name a folder.")
    if any(os.path.exists(expanded(each)) and real_path(each) == real_path(path) for each in inputs):
        raise ValueError(f"{name} ({path}): is what is read; name another folder, so that nothing is lost.")
    ancestor = _existing(real_path(path))
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
    target = real_path(path)
    temporary = _temporary(target)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):  # it would hide the cause
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
    target = real_path(folder)
    exists = target.is_dir()
    # inside an existing folder, whose parent may be read-only or another disk
    temporary = _temporary(target / target.name if exists else target)
    made = [] if exists else missing_parents(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        # who may read the folder may read its files: safetensors leaves its own to their owner alone
        mode = S_IMODE(temporary.stat().st_mode) & 0o666
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(mode)
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


def expanded(path: str | Path) -> Path:
    """`~` and `~name` as the home folder of a user; other names that begin with `~` are names, not errors."""
    return Path(os.path.expanduser(path))


def real_path(path: str | Path) -> Path:
    return Path(os.path.realpath(expanded(path)))


def _temporary(target: Path) -> Path:
    # a name of its own: several processes and threads may write the same file
    return target.with_name(f"{temporary_stem(target.name)}.{os.urandom(4).hex()}{INCOMPLETE}")


def temporary_stem(name: str) -> str:
    """What temporary names of the file `name` begin with: `name`, or the beginning of a long one and its checksum."""
    encoded = os.fsencode(name)
    room = MAX_NAME - 9 - len(INCOMPLETE)  # 9: a dot and eight digits
    if not room < len(encoded) <= MAX_NAME:  # a name that no file can have is to fail at once
        return name
    return f"{encoded[: room - 9].decode(errors='ignore')}.{crc32(encoded):08x}"


def _existing(path: Path) -> Path:
    """The nearest ancestor that exists, or `path` itself."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def missing_parents(path: Path) -> list[Path]:
    """Ancestors that do not exist, the deepest first."""
    existing = _existing(path.parent)
    return [parent for parent in path.parents if existing in parent.parents]


def _raise_with_name(path: str | Path, temporary: Path, error: BaseException) -> NoReturn:
    """Raise `error`, and where writing `temporary` is its cause, with the name of what could not be written."""
    reason = None
    if isinstance(error, OSError):
        # a full disk is that of the copy, though `shutil` names what it copies from
        is_own = error.filename is None or str(error.filename).startswith(str(temporary))
        if is_own or error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = error.strerror
    elif (full := os.strerror(errno.ENOSPC)) in str(error):  # libraries in Rust and C++ have errors of their own
        reason = full
    if reason is None:
        raise error
    is_denied = isinstance(error, PermissionError)
    fix = "make the folder writable" if is_denied else "make room there"
    raise OSError(f"{path}: cannot be written ({reason}); {fix}, or name another.") from error

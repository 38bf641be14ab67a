"""Files that a command writes: refused at once where they cannot be written, and never left half-written."""

import os
import tempfile
from pathlib import Path


def check_output_file(path: str, flag: str) -> None:
    """
    Make sure that `path` can be written, before hours go into what it is to hold; nothing is left there.

    Raises:
        FileNotFoundError: its folder does not exist.
        OSError: it is a folder, a device or a pipe, or writing is not allowed.
    """
    target = _target(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{flag} ({path}): the folder {target.parent} does not exist; make it first.")
    if os.path.exists(target) and not os.path.isfile(target):  # unlike Path's, they do not raise on too long a name
        kind = "a folder" if os.path.isdir(target) else "no ordinary file"
        raise OSError(f"{flag} ({path}): is {kind}; name a file.")
    aside = _aside(target)
    try:
        aside.write_bytes(b"")
        aside.unlink()
    except OSError as error:
        raise OSError(f"{flag} ({path}): cannot be written ({error.strerror}); name another file.") from error


def check_output_folder(path: str | Path, name: str) -> None:
    """
    Make sure that the folder `path` exists and can be written, or can be made; nothing is left there.

    Raises:
        ValueError: it is a file, or lies below one.
        OSError: writing is not allowed.
    """
    ancestor = Path(os.path.realpath(Path(path).expanduser()))
    while not os.path.lexists(ancestor) and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise ValueError(f"{name} ({path}): {ancestor} is a file; name a folder.")
    try:
        tempfile.TemporaryDirectory(dir=ancestor, prefix=".fusion-captioner-").cleanup()
    except OSError as error:
        raise OSError(f"{name} ({path}): cannot be written ({error.strerror}); name another folder.") from error


def write_file(path: str, text: str) -> None:
    """
    Write `text` as UTF-8, aside and renamed: `path` is there whole, or as it was before.

    Raises:
        OSError: the disk is full, or the like.
    """
    target = _target(path)
    aside = _aside(target)
    try:
        aside.write_bytes(text.encode("utf-8", errors="replace"))
        aside.replace(target)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"{path}: cannot be written ({error.strerror}); name another file.") from error
        raise


def _target(path: str) -> Path:
    # a link stays a link: what it leads to is replaced
    return Path(os.path.realpath(Path(path).expanduser()))


def _aside(target: Path) -> Path:
    return target.with_name(f"{target.name}.incomplete")

"""ZIP archives from elsewhere, unpacked into a folder that they cannot leave."""

import os
import shutil
import stat
import zlib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from fusion_captioner.files import INCOMPLETE

# Times its own size that an archive may unpack to; captions are compressed to a fifth.
MAX_RATIO = 50


def unpack(archive: Path, folder: Path, patterns: Sequence[str], progress: Callable[[int], object]) -> None:
    """
    Unpack the members of an archive that match a pattern. Files that are there in the right size stay, so that a run
    that was broken off is continued.

    Args:
        patterns: of the members, as paths with slashes; `*` stands for any characters.
        progress: called with the number of files that have been unpacked.

    Raises:
        ValueError: the archive is damaged, lacks the members, or has one that would be put elsewhere: an absolute
            path, `..`, a link, a device.
        OSError: the disk is full.
    """
    try:
        with ZipFile(archive) as zip_file:
            for info in zip_file.infolist():
                check_member(info, archive)
            wanted = [
                info
                for info in zip_file.infolist()
                if not info.is_dir() and any(fnmatchcase(info.filename, pattern) for pattern in patterns)
            ]
            if not wanted:
                raise ValueError(
                    f"{archive}: has none of the files {', '.join(patterns)}; it is not the archive published."
                )
            _check_size(wanted, archive, folder)
            for info in wanted:
                _unpack_member(zip_file, info, folder / info.filename)
                progress(1)
    except (BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{archive}: is damaged ({error}); delete it and repeat the command.") from error
    if hasattr(os, "sync"):
        os.sync()  # once for all files, before they count as there


def check_member(info: ZipInfo, archive: Path) -> None:
    """
    Raises:
        ValueError: the member could be put elsewhere than in the folder.
    """
    name = info.filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    is_outside = name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts
    if not name or is_outside or not name.isprintable() or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"{archive}: has a member {name!r} that leads out of the folder; nothing was unpacked.")


def _check_size(wanted: Sequence[ZipInfo], archive: Path, folder: Path) -> None:
    total = sum(info.file_size for info in wanted)
    if total > MAX_RATIO * archive.stat().st_size:
        raise ValueError(f"{archive}: would unpack to {total:,} bytes, more than {MAX_RATIO} times its size; refused.")
    missing = sum(info.file_size for info in wanted if _size(folder / info.filename) != info.file_size)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise OSError(f"{folder}: needs {missing:,} bytes more, and {free:,} are free; make room there.")


def _unpack_member(zip_file: ZipFile, info: ZipInfo, target: Path) -> None:
    if _size(target) == info.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + INCOMPLETE)
    try:
        with zip_file.open(info) as source, temporary.open("wb") as file:
            shutil.copyfileobj(source, file, 2**20)
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, BadZipFile):
            raise OSError(
                f"{target}: cannot be written ({error.strerror}); make room there and repeat the command, which goes "
                "on."
            ) from error
        raise


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1

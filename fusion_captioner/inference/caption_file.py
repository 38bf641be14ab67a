"""
The file that `caption --out` writes: a row per image, written as soon as it is known, so that a kill loses little.

Each of several processes writes a part next to the file, `FILE.part-1-of-4`, and at its end a note,
`FILE.part-1-of-4.done`. The process that finds the notes of all merges the parts.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import lru_cache
from io import FileIO
from pathlib import Path

from fusion_captioner.file_locks import lock_file, lock_holder, lock_output
from fusion_captioner.files import atomic_write, check_output_file, expanded, write_text
from fusion_captioner.fingerprints import hash_bytes
from fusion_captioner.image_loading import is_url
from fusion_captioner.inference.caption_formats import CaptionFormat, Row
from fusion_captioner.inference.image_batches import Summary
from fusion_captioner.inference.launched_process import LaunchedProcess


@contextmanager
def lock_captions(path: str, process: LaunchedProcess) -> Iterator[None]:
    """
    Keep other runs from writing the same captions, whichever number of processes they have.

    Raises:
        FileNotFoundError: the folder of the file does not exist.
        OSError: the file cannot be written, or another run is writing it; the message names its process.
    """
    target = expanded(path)
    own = _part(target, process)
    check_output_file(str(own), "--out")
    with lock_output(own, "--out"):
        lock = re.compile(re.escape(target.name) + r"(?:\.part-\d+-of-(\d+))?\.lock")
        for file in target.parent.iterdir():
            if (match := lock.fullmatch(file.name)) is None or match[1] == str(process.processes):
                continue
            if file != lock_file(own) and (holder := lock_holder(file)) is not None:
                raise OSError(
                    f"--out ({path}): is being written by {holder}; wait until it has ended, or name another output."
                )
        yield


class CaptionFile:
    """
    The captions of a run, whichever processes write them. The file is created with the first caption.

    Args:
        path: the file that all captions end in.
        images: those of all processes, in the order that merged captions have.
        process: which of the processes this one is.
        resume: continue with what an earlier run left, of any number of processes.
        format: how captions are written.

    Raises:
        FileExistsError: without `resume`, there are captions that it would add to.
        ValueError: the file has other content than captions.
        OSError: it cannot be read or written.
    """

    def __init__(
        self, path: str, images: Sequence[str], process: LaunchedProcess, resume: bool, format: CaptionFormat
    ) -> None:
        self.path = expanded(path)
        self.images = images
        self.process = process
        self.own = _part(self.path, process)
        self.format = format
        self._captioned: dict[str, list[str]] = {}
        self._file: FileIO | None = None
        self._whole_rows = 0  # bytes of them in `own`
        if resume:
            for file in (self.path, *self._parts()):
                for image, captions, row in self._read(file):
                    self._captioned[image_identity(image)] = captions
                    self._whole_rows += len(row) if file == self.own else 0
        else:
            # parts of other processes may be those of this very run
            for file in (self.path, *(self._parts() if process.processes == 1 else [self.own])):
                if file.exists() and file.stat().st_size:
                    raise FileExistsError(
                        f"--out: {file} is there already; add --resume to continue it, if it holds captions, or name "
                        "another file."
                    )
        if process.processes > 1:
            _note_of(self.own).unlink(missing_ok=True)

    def captions_of(self, image: str) -> list[str] | None:
        """What an earlier run wrote of an image, however its path was written; None: it did not caption it."""
        return self._captioned.get(image_identity(image)) if self._captioned else None

    def write(self, image: str, captions: list[str]) -> None:
        """
        Add a row.

        Raises:
            OSError: the file cannot be written, such as on a full disk.
        """
        row = self.format.row(image, captions)
        try:
            self._append(row)
        except OSError as error:
            raise OSError(
                f"--out ({self.path}): cannot be written ({error.strerror}); make room and repeat the command with "
                "--resume, which keeps the rows that are there."
            ) from error

    def _append(self, row: bytes) -> None:
        if self._file is None:
            # without a buffer: what is written outlives this process, however it ends
            self._file = self.own.open("ab+", buffering=0)
            self._file.seek(0)
            # the one of a table that a spreadsheet has saved is longer
            header = len(self._file.readline()) if self.format.header else 0
            whole = header + self._whole_rows if self._whole_rows else 0
            self._file.truncate(whole)  # drops half a row, which a kill has left
            row = row if whole else self.format.header + row
        left = memoryview(row)
        while left:  # a disk that becomes full takes the beginning of a row, and raises only at its rest
            left = left[self._file.write(left) :]

    def finish(self, summary: Summary) -> Summary | None:
        """
        End the share of this process, and merge, if all have ended theirs.

        Args:
            summary: of this process.

        Returns:
            the summary of all processes, from the one that merges; None while others are at work.
        """
        if self._file is not None:
            self._file.close()
        if self.process.processes == 1:
            if self._files(r"\.part-.*"):
                self._merge()
            return summary
        # a note about other images is one that an earlier run has left
        about = hash_bytes("\n".join(self.images).encode(errors="surrogateescape"))
        write_text(_note_of(self.own), json.dumps(asdict(summary) | {"about": about}))
        ranks = range(self.process.processes)
        notes = [_note_of(_part(self.path, replace(self.process, rank=rank))) for rank in ranks]
        claimed = notes[0].with_suffix(".merging")
        try:
            contents = [json.loads(note.read_text(encoding="utf-8")) for note in notes]
            if any(content["about"] != about for content in contents):
                return None
            notes[0].rename(claimed)  # of two processes that end together, one finds it gone
        except FileNotFoundError:
            return None
        self._merge()
        return Summary(*(sum(content[each.name] for content in contents) for each in fields(Summary)))

    def _merge(self) -> None:
        places = {image_identity(name): place for place, name in enumerate(self.images)}
        wanted = Counter(image_identity(name) for name in self.images)
        found: Counter[str] = Counter()
        rows: list[tuple[int, bytes]] = []
        parts = self._parts()
        for file in (self.path, *parts):
            for name, _, row in self._read(file):
                image = image_identity(name)
                # a kill after a merge leaves the parts, whose rows the file has already
                if file == self.path or found[image] < max(1, wanted[image]):
                    found[image] += 1
                    # captions that an earlier run made of other images stay first
                    rows.append((places.get(image, -1), row))
        rows.sort(key=lambda placed: placed[0])
        with atomic_write(self.path) as temporary:
            temporary.write_bytes((self.format.header if rows else b"") + b"".join(row for _, row in rows))
        for part in parts:
            part.unlink()
        for note in self._files(r"\.part-\d+-of-\d+\.(?:done|merging)"):
            note.unlink(missing_ok=True)

    def _read(self, file: Path) -> Iterator[Row]:
        """
        Raises:
            ValueError: a row is no caption, so that the file is not one to write to.
        """
        if not file.exists():
            return
        with file.open("rb") as lines:
            try:
                yield from self.format.rows(lines)
            except ValueError as error:
                raise ValueError(f"{file}: {error}; name another --out, or the --format that it has.") from error

    def _parts(self) -> list[Path]:
        """Of any number of processes."""
        return self._files(r"\.part-\d+-of-\d+")

    def _files(self, suffix: str) -> list[Path]:
        name = re.compile(re.escape(self.path.name) + suffix)
        return sorted(file for file in self.path.parent.iterdir() if name.fullmatch(file.name))


def _part(path: Path, process: LaunchedProcess) -> Path:
    """The file that a process writes."""
    return (
        path if process.processes == 1 else path.with_name(f"{path.name}.part-{process.rank}-of-{process.processes}")
    )


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.done")


def image_identity(image: str) -> str:
    """The same for all spellings of a file's path; a URL is itself."""
    if is_url(image):
        return image
    folder, name = os.path.split(os.path.expanduser(image))
    path = os.path.join(real_folder(os.path.join(os.getcwd(), folder)), name)
    return os.path.realpath(path) if os.path.islink(path) or name in ("", ".", "..") else path


@lru_cache(maxsize=4096)
def real_folder(folder: str) -> str:
    """A folder in one spelling, without links."""
    return os.path.realpath(folder)

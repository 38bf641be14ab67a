"""
The file that `caption --out` writes: a line per image, written as soon as it is known, so that a kill loses little.

Each of several processes writes a part next to the file, `FILE.part-1-of-4`, and at its end a note,
`FILE.part-1-of-4.done`. The process that finds the notes of all merges the parts.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import Any

from fusion_captioner.files import check_output_file, write_text
from fusion_captioner.inference.image_batches import Summary
from fusion_captioner.inference.launched_process import LaunchedProcess
from fusion_captioner.printing import json_line

_LINE_START = b'{"image": '


class CaptionFile:
    """
    The captions of a run, whichever processes write them. Nothing is there before the first caption is.

    Args:
        path: the file that all captions end in.
        images: those of all processes, in the order that merged captions have.
        process: which of the processes this one is.
        resume: go on with what an earlier run left, of however many processes.

    Raises:
        FileExistsError: without `resume`, there are captions that it would add to.
        ValueError: what is there are no captions.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: str, images: Sequence[str], process: LaunchedProcess, resume: bool) -> None:
        self.path = Path(path).expanduser()
        self.images = images
        self.process = process
        self.own = self.path if process.processes == 1 else self._part(process.rank)
        check_output_file(str(self.own), "--out")
        self.captioned: set[str] = set()
        self._file: FileIO | None = None
        self._whole_lines = 0  # bytes of them in `own`
        if resume:
            for file in (self.path, *self._parts()):
                for entry, line in _read(file):
                    self.captioned.add(entry["image"])
                    self._whole_lines += len(line) if file == self.own else 0
        else:
            # parts of other processes may be those of this very run
            for file in (self.path, *(self._parts() if process.processes == 1 else [self.own])):
                if file.exists() and file.stat().st_size:
                    raise FileExistsError(
                        f"--out: {file} holds captions already; add --resume to go on with them, or name another file."
                    )
        self._done_note(process.rank).unlink(missing_ok=True)

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line."""
        if self._file is None:
            # without a buffer: what is written outlives this process, however it ends
            self._file = self.own.open("ab", buffering=0)
            self._file.truncate(self._whole_lines)  # half a line, which a kill has left, goes
        self._file.write(f"{json_line(entry)}\n".encode())

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
            if self._parts():
                self._merge()
            return summary
        # a note about other images is one that an earlier run has left
        about = blake2b("\n".join(self.images).encode(errors="surrogateescape"), digest_size=16).hexdigest()
        write_text(self._done_note(self.process.rank), json.dumps(asdict(summary) | {"about": about}))
        notes = [self._done_note(rank) for rank in range(self.process.processes)]
        claimed = notes[0].with_suffix(".merging")
        try:
            said = [json.loads(note.read_text()) for note in notes]
            if any(note["about"] != about for note in said):
                return None
            notes[0].rename(claimed)  # of two that end together, one finds it gone
        except FileNotFoundError:
            return None
        self._merge()
        for note in (claimed, *notes[1:]):
            note.unlink()
        return Summary(sum(note["images"] for note in said), sum(note["bad"] for note in said))

    def _merge(self) -> None:
        places = {name: place for place, name in enumerate(self.images)}
        parts = self._parts()
        # captions that an earlier run made of other images stay first
        lines = [(places.get(entry["image"], -1), line) for file in (self.path, *parts) for entry, line in _read(file)]
        lines.sort(key=lambda placed: placed[0])
        write_text(self.path, b"".join(line for _, line in lines).decode())
        for part in parts:
            part.unlink()

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.part-{rank}-of-{self.process.processes}")

    def _parts(self) -> list[Path]:
        """Of whichever number of processes."""
        name = re.compile(re.escape(self.path.name) + r"\.part-\d+-of-\d+")
        return sorted(file for file in self.path.parent.iterdir() if name.fullmatch(file.name))

    def _done_note(self, rank: int) -> Path:
        part = self._part(rank)
        return part.with_name(f"{part.name}.done")


def _read(file: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each whole line, as what it says and as it is; a last one that is not whole is left out.

    Raises:
        ValueError: a line is no caption, so that the file is not one to write to.
    """
    if not file.exists():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n") and _LINE_START.startswith(line[: len(_LINE_START)]):
                return
            try:
                entry = json.loads(line)
                if not line.startswith(_LINE_START) or not isinstance(entry["image"], str):
                    raise ValueError("no image is named")
            except ValueError as error:  # of JSON and of UTF-8, too
                raise ValueError(f"{file}: line {number} is no caption ({error}); name another --out.") from error
            yield entry, line

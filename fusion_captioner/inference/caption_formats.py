"""The formats of captions in a file or on stdout: JSON lines, CSV, and text with tabs. An image is a row in each."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from fusion_captioner.printing import json_line

# An image and its captions, as the file has them, and the bytes of the row
Row = tuple[str, list[str], bytes]

_JSON_START = b'{"image": '


class CaptionFormat(Protocol):
    """How captions are written, and read again by `--resume`."""

    @property
    def header(self) -> bytes:
        """What a file begins with."""
        ...

    def row(self, image: str, captions: list[str]) -> bytes:
        """The row of an image, with its line break."""
        ...

    def rows(self, lines: Iterable[bytes]) -> Iterator[Row]:
        """
        The whole rows of a file behind its header; a last one that a kill has cut is left out.

        Raises:
            ValueError: a row is no caption; the message has its line.
        """
        ...


class JsonLines:
    """`{"image": ..., "caption": ...}`, and `"captions"` where there are several."""

    header = b""

    def row(self, image: str, captions: list[str]) -> bytes:
        entry = {"image": image, "caption": captions[0]} | ({"captions": captions} if len(captions) > 1 else {})
        return f"{json_line(entry)}\n".encode()

    def rows(self, lines: Iterable[bytes]) -> Iterator[Row]:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n") and _JSON_START.startswith(line[: len(_JSON_START)]):
                return
            try:
                entry: dict[str, Any] = json.loads(line)
                if not line.startswith(_JSON_START) or not isinstance(entry["image"], str):
                    raise ValueError("no image is named")
                captions = entry.get("captions", [entry.get("caption")])
                if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
                    raise ValueError("it has no caption")
            except ValueError as error:  # of JSON and of UTF-8, too
                raise ValueError(f"line {number} is no caption ({error})") from error
            yield entry["image"], captions, line


class Csv:
    """
    A table with the columns `image` and `caption`, or `caption_0`, `caption_1`, ..., that spreadsheets open and that
    training reads.

    Args:
        captions: how many each image has.
    """

    def __init__(self, captions: int) -> None:
        self.columns = ["image", *(["caption"] if captions == 1 else [f"caption_{k}" for k in range(captions)])]

    @property
    def header(self) -> bytes:
        return _csv_row(self.columns)

    def row(self, image: str, captions: list[str]) -> bytes:
        return _csv_row([image, *captions])

    def rows(self, lines: Iterable[bytes]) -> Iterator[Row]:
        record, first = b"", 0
        for number, line in enumerate(lines, 1):
            first, record = (first if record else number), record + line
            if record.count(b'"') % 2:  # a line break inside quotes
                continue
            row, record = record, b""
            if not row.endswith(b"\n"):
                record = row
                break
            try:
                values = next(csv.reader([row.decode("utf-8-sig", "surrogateescape")], strict=True), [])
            except csv.Error as error:
                raise ValueError(f"line {first} is no caption ({error})") from error
            if first == 1 and values != self.columns:
                raise ValueError(
                    f"line 1 has the columns {','.join(values)[:80]!r}, and this run writes {','.join(self.columns)!r}"
                )
            if len(values) != len(self.columns):
                raise ValueError(f"line {first} has {len(values)} values, and {len(self.columns)} columns")
            if first > 1:
                yield values[0], values[1:], row
        if b"\n" in record and record.count(b'"') % 2:
            raise ValueError(f"line {first} has a quote that is not closed")
        if record and first == 1 and not self.header.startswith(record):
            raise ValueError("line 1 is no caption")


class Text:
    """The name of the image, a tab, and its caption; further captions follow behind further tabs."""

    header = b""

    def row(self, image: str, captions: list[str]) -> bytes:
        if any(character in image for character in "\t\r\n"):
            raise ValueError(
                "its name has a tab or a line break, which --format txt cannot hold; choose csv or jsonl."
            )
        return (
            "\t".join([image, *(" ".join(text.split()) for text in captions)]).encode("utf-8", "surrogateescape")
            + b"\n"
        )

    def rows(self, lines: Iterable[bytes]) -> Iterator[Row]:
        for number, line in enumerate(lines, 1):
            image, *captions = line.decode("utf-8", "surrogateescape").rstrip("\r\n").split("\t")
            if not line.endswith(b"\n") and (captions or number > 1):
                return
            if not captions or not image:
                raise ValueError(f"line {number} is no caption (it has no tab)")
            yield image, captions, line


def _csv_row(values: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(values)  # some Pythons quote \r only where rows end with it
    return text.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


def caption_format(name: str | None, path: str | None, captions: int) -> CaptionFormat:
    """
    The format of the name `"jsonl"`, `"csv"` or `"txt"`; without one, by the ending of `path`, or else JSON lines.

    Args:
        captions: how many each image has.
    """
    if name is None:
        ending = (path or "").rpartition(".")[2].lower()
        name = ending if ending in ("csv", "txt") else "jsonl"
    formats: dict[str, Callable[[], CaptionFormat]] = {"jsonl": JsonLines, "csv": lambda: Csv(captions), "txt": Text}
    return formats[name]()

"""What every reader of annotations produces: images with their captions, and a list of the examples that are bad."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fusion_captioner.files import write_text

logger = logging.getLogger(__name__)

FIX = (
    "correct it, or leave such examples out with `skip_bad_images=True` (`train --data.skip_bad_images true`, "
    "`evaluate --skip-bad-images`)"
)

NO_UTF8_NAME = "its name is no UTF-8 text; rename it"


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image and its captions; `path` is absolute, and the file is not opened to make this."""

    image_id: str
    path: str
    captions: list[str]


@dataclass(frozen=True, slots=True)
class SkippedExample:
    """One example (or one of its captions) that was left out: its split and image, the file, and why.

    `is_bad_file`: the image `file` is bad, not an annotation.
    """

    split: str
    image_id: str
    file: str
    reason: str
    is_bad_file: bool = False


class BadExamples:
    """Decides what a bad example does: raise at once (`skip=False`), or be counted, listed and left out."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.skipped: list[SkippedExample] = []

    def report(self, example: SkippedExample, error: type[Exception] = ValueError) -> None:
        """Raise `error` with one line that names the file and the fix, or put `example` on the list; what cannot be
        printed or saved in it is escaped."""
        image_id, file, reason = map(escape_surrogates, (example.image_id, example.file, example.reason))
        example = replace(example, image_id=image_id, file=file, reason=reason)
        if not self.skip:
            where = f"split {example.split!r}, image_id {example.image_id!r}"
            raise error(f"{example.file} ({where}): {example.reason}; {FIX}.")
        self.skipped.append(example)

    def log_summary(self, source: str) -> None:
        """Log how many were left out of `source`, and why."""
        log_skipped(self.skipped, source)


def escape_surrogates(text: str) -> str:
    """
    `text` with its lone surrogates, which UTF-8 and so Arrow cannot hold, written as `\\udce9`. They stand for the
    bytes of a file's name that are no UTF-8, and in JSON for half a character.
    """
    return text.encode("utf-8", errors="backslashreplace").decode()


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold `text`: it has no lone surrogates."""
    return escape_surrogates(text) == text


def bad_image_error(error: Exception) -> Exception:
    """The error of an image that cannot be decoded, with the fix added to its line."""
    kind = next(kind for kind in (FileNotFoundError, OSError, Exception) if isinstance(error, kind))
    return (ValueError if kind is Exception else kind)(f"{error}; {FIX}.")


def log_skipped(skipped: list[SkippedExample], source: str, listed_in: str | None = None) -> None:
    """Log the number of `skipped` examples of `source`, the first few of them, and the file that holds the list."""
    if not skipped:
        return
    shown = "; ".join(f"{example.file}: {example.reason}" for example in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    listed = f" (all of them in {listed_in})" if listed_in else ""
    logger.warning("%s: %d bad examples left out%s: %s%s", source, len(skipped), listed, shown, more)


def clean_captions(captions: Iterable[Any], split: str, image_id: str, file: str, bad: BadExamples) -> list[str]:
    """The captions with runs of white space (COCO has line breaks inside captions) made one space, empty ones left
    out.

    Every empty or non-text caption is reported to `bad`, and so is an image that has no caption left, or whose name
    or id is no text.
    """
    is_bad_file = not is_utf8(file)
    if is_bad_file or not is_utf8(image_id):
        reason = NO_UTF8_NAME if is_bad_file else "its id is no UTF-8 text; change it"
        bad.report(SkippedExample(split, image_id, file, reason, is_bad_file))
        return []
    cleaned = []
    for number, caption in enumerate(captions, start=1):
        if not isinstance(caption, str):
            reason = f"caption {number} is {type(caption).__name__} {caption!r}, not text"
            bad.report(SkippedExample(split, image_id, file, reason))
        elif not is_utf8(caption):
            reason = f"caption {number} ({caption!r}) is no UTF-8 text: a character is cut in half"
            bad.report(SkippedExample(split, image_id, file, reason))
        elif text := " ".join(caption.split()):
            cleaned.append(text)
        else:
            bad.report(SkippedExample(split, image_id, file, f"caption {number} is empty"))
    if not cleaned:
        bad.report(SkippedExample(split, image_id, file, "image without caption"))
    return cleaned


def merge_repeated(images: Iterable[AnnotatedImage], split: str, bad: BadExamples) -> list[AnnotatedImage]:
    """One entry per `image_id`, in order of first appearance, with the captions of its repetitions joined.

    An id that names two different files cannot be merged: the later file is reported to `bad`.
    """
    merged: dict[str, AnnotatedImage] = {}
    for image in images:
        first = merged.setdefault(image.image_id, image)
        if first is image:
            continue
        if first.path != image.path:
            reason = f"image_id {image.image_id!r} already names {first.path}"
            bad.report(SkippedExample(split, image.image_id, image.path, reason))
        else:
            merged[image.image_id] = AnnotatedImage(image.image_id, first.path, first.captions + image.captions)
    return list(merged.values())


def write_skipped(skipped: list[SkippedExample], path: Path) -> None:
    """Write the list as JSON."""
    write_text(path, json.dumps([asdict(example) for example in skipped], indent=1, ensure_ascii=False))


def read_skipped(path: Path) -> list[SkippedExample]:
    """The list that [`write_skipped`] wrote."""
    return [SkippedExample(**example) for example in json.loads(path.read_text(encoding="utf-8"))]

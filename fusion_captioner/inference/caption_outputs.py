"""Where captions go: to stdout or a file, to a caption file next to each photo, and into the photo itself."""

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fusion_captioner.data.image_files import photo_suffixes
from fusion_captioner.files import check_no_link, expanded, write_text
from fusion_captioner.image_loading import is_url
from fusion_captioner.inference.caption_file import CaptionFile, image_identity, real_folder
from fusion_captioner.inference.caption_formats import CaptionFormat
from fusion_captioner.printing import error_text, print_line, print_note, printable

# What no other photo would be spared
DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def check_sidecar_ending(ending: str) -> str:
    """
    The ending of caption files, with its dot.

    Raises:
        ValueError: it is no ending, or one of photos, which would be overwritten.
    """
    name = ending if ending.startswith(".") else f".{ending}"
    if len(name) < 2 or name != os.path.basename(name) or name.strip(". ") == "":
        raise ValueError(f"--sidecar ({ending}) must be the ending of caption files, such as .txt")
    if name.lower() in photo_suffixes():
        raise ValueError(f"--sidecar ({ending}) is an ending of images; name another one, such as .txt")
    return name


def without_repetitions(images: Sequence[str]) -> list[str]:
    """Each photo once, whatever ways its path is written in."""
    found: dict[str, str] = {}
    for image in images:
        found.setdefault(_place(image), image)
    return list(found.values())


def url_problems(images: Sequence[str]) -> dict[int, str]:
    """Those of `images` that nothing can be written to or next to, by their place."""
    return {
        place: f"{image}: --sidecar and --write-metadata need a file, and this is a URL; download it first."
        for place, image in enumerate(images)
        if is_url(image)
    }


class Sidecars:
    """
    Caption files next to photos: `photo.txt` of `photo.jpg`, a line per caption.

    Args:
        ending: of the caption files, with its dot.
        protected: files that no caption file may replace.
    """

    def __init__(self, ending: str, protected: Sequence[str] = ()) -> None:
        self.ending = ending
        self.protected = {image_identity(path) for path in protected}

    def path(self, image: str) -> Path:
        return expanded(image).with_suffix(self.ending)

    def exists(self, image: str) -> bool:
        return os.path.lexists(self.path(image))

    def problems(self, images: Sequence[str]) -> dict[int, str]:
        """What is wrong with the caption files of `images`, by the place of the image."""
        photos: dict[str, list[int]] = {}
        found: dict[int, str] = {}
        for place, image in enumerate(images):
            # a URL, an empty folder or a path that leads nowhere gets no caption file
            if not os.path.isfile(os.path.expanduser(image)):
                continue
            path = self.path(image)
            photos.setdefault(_place(str(path)), []).append(place)
            if image_identity(str(path)) in self.protected or _place(str(path)) == _place(image):
                found[place] = f"{image}: its caption file would replace {path}; choose another --sidecar ending."
        for places in photos.values():
            if len(places) > 1:
                names = [images[place] for place in places]
                for place in places:
                    others = " and ".join(name for name in names if name != images[place])
                    found[place] = (
                        f"{images[place]}: shares the caption file {self.path(images[place]).name} with {others}; "
                        "rename one of them."
                    )
        return found

    def write(self, image: str, captions: Sequence[str], overwrite: bool) -> bool:
        """
        Returns:
            whether it was written; False: there is one, which stays without `overwrite`.
        """
        path = self.path(image)
        if self.exists(image) and not overwrite:
            return False
        check_no_link(path)
        write_text(path, "".join(f"{' '.join(text.split())}\n" for text in captions))
        return True


class CaptionOutputs:
    """
    The outputs of a run.

    Args:
        format: of rows.
        file: that rows go to; None: stdout.
        sidecars: the caption files, if there are to be any.
        describe: writes a caption into a photo, if there is to be one there; see [`write_description`].
        overwrite: replace caption files and descriptions that are there.
    """

    def __init__(
        self,
        format: CaptionFormat,
        file: CaptionFile | None,
        sidecars: Sidecars | None,
        describe: Callable[[str, str, bool], bool] | None,
        overwrite: bool,
    ) -> None:
        self.format = format
        self.file = file
        self.sidecars = sidecars
        self.describe = describe
        self.overwrite = overwrite
        self.written = 0
        self.kept = 0
        self._has_header = False

    def is_done(self, image: str) -> bool:
        """Whether nothing is to be written of an image: all that is wanted is a caption file, which is there."""
        if self.sidecars is None or self.file is not None or self.describe is not None or self.overwrite:
            return False
        return self.sidecars.exists(image)

    def write(self, image: str, captions: list[str]) -> bool:
        """
        Write the captions of an image wherever they go; the row comes last, so that `--resume` finds what is missing.

        Returns:
            whether all of it was written; what was not is printed.

        Raises:
            OSError: the disk is full.
        """
        is_whole, kept = self._write_next_to(image, captions, self.overwrite)
        self.kept += kept
        if self.file is not None:
            self.file.write(image, captions)
        else:
            self._print(self.format.row(image, captions))
        return is_whole

    def complete(self, image: str, captions: list[str]) -> bool:
        """Write what an earlier run has not, of captions that it wrote to the file; as `write`."""
        # never what is there: it is that of the earlier run, and a person may have edited it since
        return self._write_next_to(image, captions, overwrite=False)[0]

    def _write_next_to(self, image: str, captions: list[str], overwrite: bool) -> tuple[bool, bool]:
        """Whether everything was written, and whether something was there already and stays."""
        is_whole, kept = True, False
        writers: list[Callable[[], bool]] = []
        if self.sidecars is not None:
            writers.append(partial(self.sidecars.write, image, captions, overwrite))
        if self.describe is not None:
            writers.append(partial(self.describe, image, captions[0], overwrite))
        for writer in writers:
            try:
                wrote = writer()
            except (ValueError, OSError) as error:
                self._raise_if_full(image, error)
                print_note(error_text(error))
                is_whole = False
            else:
                self.written += wrote
                kept |= not wrote
        return is_whole, kept

    def _raise_if_full(self, image: str, error: Exception) -> None:
        cause = error if isinstance(error, OSError) and error.errno else error.__cause__
        if isinstance(cause, OSError) and cause.errno in DISK_IS_FULL:
            raise OSError(
                f"{image}: its caption cannot be written ({cause.strerror}), and {self.written} were before; make "
                "room and repeat the command, which keeps what is there."
            ) from error

    def _print(self, row: bytes) -> None:
        if not self._has_header and isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
            sys.stdout.reconfigure(encoding="utf-8")  # as a file has it: escapes would be part of names and captions
        header = b"" if self._has_header else self.format.header
        self._has_header = True
        for line in (header + row).decode("utf-8", "surrogateescape").removesuffix("\n").split("\n"):
            text = "\t".join(map(printable, line.split("\t")))
            encoding = sys.stdout.encoding or "utf-8"
            print_line(text.encode(encoding, "backslashreplace").decode(encoding), sys.stdout)


def _place(path: str) -> str:
    """A file's path in one spelling; a link is a file of its own."""
    if is_url(path):
        return path
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(path)))
    return os.path.join(real_folder(folder), name)

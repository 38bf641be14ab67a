"""A caption inside its photo, as the description that XMP and IPTC have, read and written by the library Exiv2."""

from importlib import import_module
from pathlib import Path
from shutil import copymode
from typing import Any

from fusion_captioner.files import atomic_write, check_no_link

# XMP is what programs read first; IPTC is what older ones know. WebP has no IPTC.
XMP, IPTC = "Xmp.dc.description", "Iptc.Application2.Caption"
IPTC_CHARSET, UTF_8 = "Iptc.Envelope.CharacterSet", "\x1b%G"
IPTC_BYTES = 2000  # limit of the field


def import_exiv2() -> Any:
    """
    The library, by its Python package.

    Raises:
        ImportError: says how to install it.
    """
    try:
        return import_module("pyexiv2")
    except (ImportError, OSError) as error:  # OSError: it lacks a library of the system
        raise ImportError(
            f"--write-metadata needs the package pyexiv2 ({error}); "
            "install it with: pip install 'fusion-captioner[metadata]'"
        ) from error


def write_description(photo: str, text: str, overwrite: bool = False) -> bool:
    """
    Write `text` into a photo as its description. The pixels stay as they are, byte for byte, and so does other
    metadata. The photo is replaced atomically.

    Args:
        photo: a JPEG, PNG, TIFF, WebP or JPEG 2000 file.
        overwrite: replace a description that is there.

    Returns:
        whether it was written; False: the photo has a description already, which stays.

    Raises:
        ValueError: its format has no place for descriptions, or the file is damaged.
        OSError: it cannot be read or written, or is a link.
    """
    path = Path(photo).expanduser()
    check_no_link(path)
    content = path.read_bytes()
    try:
        with import_exiv2().ImageData(content) as image:
            if not overwrite and _has_description(image):
                return False
            image.modify_xmp({XMP: {'lang="x-default"': text}})
            if "iptc" in _kinds(image):
                short = text.encode("utf-8", "replace")[:IPTC_BYTES].decode("utf-8", "ignore")
                image.modify_iptc({IPTC_CHARSET: UTF_8, IPTC: short})
            changed = image.get_bytes()
    except RuntimeError as error:  # all that Exiv2 raises
        raise ValueError(f"{photo}: its description cannot be written ({str(error).splitlines()[0][:200]})") from error
    with atomic_write(path) as temporary:
        temporary.write_bytes(changed)
        copymode(path, temporary)
    return True


def _has_description(image: Any) -> bool:
    found = image.read_xmp().get(XMP)
    texts = found.values() if isinstance(found, dict) else [found]
    return any(text and text.strip() for text in texts) or bool(image.read_iptc().get(IPTC))


def _kinds(image: Any) -> set[str]:
    """The kinds of metadata that the format of an image holds."""
    return {"xmp"} if image.get_mime_type() == "image/webp" else {"xmp", "iptc"}

"""A caption inside its photo, as the description that XMP and IPTC have, read and written by the library Exiv2."""

from importlib import import_module
from shutil import copymode
from typing import Any

from fusion_captioner.files import atomic_write, check_no_link, expanded

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
    path = expanded(photo)
    check_no_link(path)
    content = path.read_bytes()
    try:
        with import_exiv2().ImageData(content) as image:
            if not overwrite and _has_description(image):
                return False
            image.modify_xmp({XMP: {'lang="x-default"': text}})
            if "iptc" in _kinds(image):
                short = text.encode("utf-8", "replace")[:IPTC_BYTES].decode("utf-8", "ignore")
                # the mark holds for all fields, and those of older programs are in Latin-1
                old = {
                    name: texts
                    for name, texts in _iptc(image).items()
                    if not "".join(texts).isascii() and ".0x" not in name  # no field of text
                }
                image.modify_iptc(old | {IPTC_CHARSET: UTF_8, IPTC: short})
            changed = image.get_bytes()
    except (RuntimeError, ValueError) as error:  # of Exiv2; and text that is not in UTF-8, or too large a file
        raise ValueError(f"{photo}: its description cannot be written ({str(error).splitlines()[0][:200]})") from error
    with atomic_write(path) as temporary:
        temporary.write_bytes(changed)
        copymode(path, temporary)
    return True


def _has_description(image: Any) -> bool:
    found = image.read_xmp().get(XMP)
    texts = found.values() if isinstance(found, dict) else [found]
    return any(text and text.strip() for text in texts) or bool(_iptc(image).get(IPTC))


def _iptc(image: Any) -> dict[str, str | list[str]]:
    """The fields of IPTC; a text that is not in UTF-8 is read as Latin-1."""
    fields = image.read_iptc("latin-1")  # whose characters are the bytes
    return {
        name: _decoded(value) if isinstance(value, str) else [_decoded(text) for text in value]
        for name, value in fields.items()
    }


def _decoded(latin: str) -> str:
    try:
        return latin.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return latin


def _kinds(image: Any) -> set[str]:
    """The kinds of metadata that the format of an image holds."""
    return {"xmp"} if image.get_mime_type() == "image/webp" else {"xmp", "iptc"}

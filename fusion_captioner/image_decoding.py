"""A file of an image, or its bytes, to an upright RGB picture: within bounds of memory, whatever the file claims to
be.

Needs Pillow and NumPy only.
"""

import ctypes
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin

# What decoding may take, of all images together that are decoded at the same time. A file of 34 bytes can be a
# picture of 180 megapixels, and take 3 GB.
MAX_DECODED_BYTES = 208 * 1024**2
# The C library may keep what is freed; of decoding that takes this size and more it is made to give it back to the
# system.
LARGE_BYTES = 32 * 1024**2
# Larger than any camera's pictures; those of 200 megapixels are JPEG, which is decoded small.
MAX_IMAGE_PIXELS = 2**28
# Above so many pixels a picture is made smaller before transparency is laid on white and values are scaled.
MAX_PIXELS_AT_ONCE = 4_000_000

# A large picture of another format than JPEG is brought near the size that is wanted, but this much larger: the
# resizing behind it then smooths as it would have done from the full size.
BAND_MARGIN = 1.5

# This module says itself what is wrong with an image. Pillow's warnings of large pictures and damaged metadata only
# name a file of Pillow. Not `catch_warnings` around the call: images are loaded in threads, with which that is not
# safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")

# Formats that are not opened: what they hold may be of any size or format, whatever their header says (icons, IPTC,
# BLP, OLE files, compressed FITS), or is a document, a film, data, or a drawing that Windows would run
REFUSED_FORMATS = {
    *("BLP", "BUFR", "FITS", "FPX", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MIC", "MPEG", "PDF", "WMF"),
}

TILE_WIDTH, TILE_LENGTH, ROWS_PER_STRIP, BITS_PER_SAMPLE = 322, 323, 278, 258  # tags of TIFF

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width

# Bytes per pixel that Pillow holds, by mode (4 where not named), and that a format's decoder takes at most, measured
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
_FORMAT_BYTES = {"WEBP": 16, "AVIF": 10, "JPEG2000": 20, "HEIF": 12, "DDS": 8}


class ImageTooLargeError(ValueError):
    """An image has more pixels than are decoded, or would take too much memory."""


class _Budget:
    """Bytes that all threads together may take at a time to decode images."""

    def __init__(self) -> None:
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, size: int) -> Iterator[None]:
        """Waits until `size` bytes are free, and gives them back at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken + size <= MAX_DECODED_BYTES)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


_budget = _Budget()


def decode_image(source: str | bytes, name: str, target_size: tuple[int, int] | None) -> Image.Image:
    """Decodes a file: `source` is its path (str) or its content (bytes)."""
    if isinstance(source, str):
        _check_file(source, name)
    elif not source:
        raise ValueError(f"{name}: the file is empty (0 bytes)")
    with _open(source, name) as image:
        if image.format == "EPS":
            raise ValueError(f"{name}: an EPS drawing, which would be run as a program; convert it to PNG")
        _check_pixels(image, name)
        if target_size is not None:
            if _orientation(image) in _SIDEWAYS:
                target_size = (target_size[1], target_size[0])
            if image.format in ("JPEG", "MPO"):
                # Decoded at 1/2, 1/4 or 1/8, not below what is wanted
                image.draft("RGB", target_size[::-1])
        size = _decoded_bytes(image)
        if size > MAX_DECODED_BYTES:
            raise ImageTooLargeError(
                f"{name}: {image.width}x{image.height} pixels of {image.format} take {size / 1024**2:.0f} MiB to "
                f"decode (the limit is {MAX_DECODED_BYTES // 1024**2}); make the image smaller, or save it as JPEG"
            )
        with _budget.taking(size):
            picture = _upright_rgb(image, name, target_size)
            if target_size is not None and size > LARGE_BYTES:
                if picture is not image:
                    image.close()
                _give_back_freed_memory()
            return picture


def _give_back_freed_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def _open(source: str | bytes, name: str) -> Image.Image:
    """The image file with its header read."""
    try:
        return open_header(source)
    except Image.UnidentifiedImageError as error:
        if is_heif(source):
            return _open_heif(source, name)
        raise ValueError(f"{name}: not an image, or one of a format that is not read") from error
    except Image.DecompressionBombError as error:
        try:  # by its own plugin, since Pillow's limit is below what cameras write
            return JpegImagePlugin.JpegImageFile(source if isinstance(source, str) else BytesIO(source))
        except Exception:
            raise ImageTooLargeError(f"{name}: too large ({_one_line(error)}); make the image smaller") from error
    except Exception as error:
        raise _unreadable(error, name) from error


def open_header(source: str | bytes) -> Image.Image:
    """
    An image file, by path or content, of which nothing but the header is read.

    Raises:
        PIL.UnidentifiedImageError: it is none, or of one of the `REFUSED_FORMATS`.
        Exception: what else Pillow's plugins meet in a damaged header.
    """
    Image.preinit()
    common = tuple(kind for kind in ("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM") if kind in Image.OPEN)
    try:
        return Image.open(source if isinstance(source, str) else BytesIO(source), formats=common)
    except Image.UnidentifiedImageError:
        Image.init()  # which takes a while
    head = _head(source, 16)
    for kind in REFUSED_FORMATS & Image.OPEN.keys():
        accepts = Image.OPEN[kind][1]
        if accepts is not None and accepts(head) is True:  # other plugins could take it for theirs
            raise Image.UnidentifiedImageError(kind)
    others = tuple(kind for kind in Image.ID if kind not in (*common, *REFUSED_FORMATS))
    return Image.open(source if isinstance(source, str) else BytesIO(source), formats=others)


def _head(source: str | bytes, count: int) -> bytes:
    if not isinstance(source, str):
        return source[:count]
    with open(source, "rb") as file:
        return file.read(count)


def is_heif(source: str | bytes) -> bool:
    """Whether a file, by path or content, is a photo in HEIF, which phones write and Pillow alone does not read."""
    head = _head(source, 12)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def _open_heif(source: str | bytes, name: str) -> Image.Image:
    if find_spec("pillow_heif") is None:
        raise ValueError(f"{name}: an HEIC photo; pip install pillow-heif, which reads it")
    try:
        # named as text: code that is shipped with a checkpoint may not ask for this package
        import_module("pillow_heif").register_heif_opener()
        return Image.open(source if isinstance(source, str) else BytesIO(source))
    except Exception as error:
        raise _unreadable(error, name) from error


def _decoded_bytes(image: Image.Image) -> int:
    """Bytes that decoding takes at its height, by the header alone."""
    pixels = image.width * image.height
    per_pixel = max(_MODE_BYTES.get(image.mode, 4), _FORMAT_BYTES.get(image.format or "", 0))
    size = pixels * per_pixel
    tile = getattr(image, "tile", None)
    if tile and tile[0][0] in Image.DECODERS:  # written in Python, which holds the pixels twice
        size += 4 * pixels
    if image.format in ("JPEG", "MPO") and (image.info.get("progressive") or not _is_in_one_scan(image)):
        # its coefficients are held, at full size even where it is decoded small; of colours often fewer than of light
        scale = getattr(image, "decoderconfig", (1,))[0] or 1
        layers = getattr(image, "layer", None) or [(0, 1, 1)] * 3
        blocks = max(h for _, h, *_ in layers) * max(v for _, _, v, *_ in layers)
        size += int(2 * pixels * scale**2 * sum(h * v for _, h, v, *_ in layers) / blocks)
    if image.format == "TIFF":
        size += _block_bytes(image) + pixels * (4 if _orientation(image) != 1 else 0)
    return size


def _block_bytes(image: Image.Image) -> int:
    """Bytes that a TIFF's strip of rows takes besides the picture, which may be all of it, or its tile, which may be
    larger than the picture."""
    tags = image.tag_v2  # type: ignore[attr-defined]

    def number(tag: int, default: int) -> int:
        return value if isinstance(value := tags.get(tag), int) else default

    if TILE_WIDTH in tags or TILE_LENGTH in tags:
        pixels = number(TILE_WIDTH, MAX_IMAGE_PIXELS) * number(TILE_LENGTH, MAX_IMAGE_PIXELS)
    else:
        pixels = image.width * min(number(ROWS_PER_STRIP, image.height), image.height)
    bits = tags.get(BITS_PER_SAMPLE, 8)
    bits = max(bits) if isinstance(bits, tuple) else bits
    bands = len(image.getbands())
    if image.info.get("compression") in ("jpeg", "tiff_jpeg"):  # its coefficients, and RGBA made of them
        return pixels * (2 * bands + 4)
    return int(pixels * max(bands * bits / 8, 1))


def _is_in_one_scan(image: Image.Image) -> bool:
    """Whether the first scan of a JPEG has all its layers: if not, all coefficients are held until the last one."""
    file, layers = image.fp, len(image.layer)  # type: ignore[attr-defined]
    if image.format == "MPO":  # its file is back at its beginning; a JPEG's is behind the first head
        file.seek(0)
        JpegImagePlugin.JpegImageFile(file)
    size = 6 + 2 * layers
    file.seek(-size - 2, 1)
    return file.read(size + 2)[:5] == b"\xff\xda" + size.to_bytes(2, "big") + bytes([layers])


def _check_file(path: str, name: str) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except OSError as error:
        raise OSError(f"{name[:200]}: cannot be opened ({error.strerror})") from error
    except ValueError as error:  # a null character
        raise ValueError(f"{name!r}: not the name of a file ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{name}: a folder, not an image; name the files in it")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name}: not a regular file")  # a pipe or device could block for ever
    if status.st_size == 0:
        raise ValueError(f"{name}: the file is empty (0 bytes)")


def checked_rgb(image: Image.Image, name: str) -> Image.Image:
    """A picture that is open already, upright and in RGB, unless it is too large."""
    _check_pixels(image, name)
    return _upright_rgb(image, name)


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ImageTooLargeError(
            f"{name}: {image.width}x{image.height} pixels are too many (the limit is {MAX_IMAGE_PIXELS / 1e6:.0f} "
            "megapixels); make the image smaller"
        )


def _upright_rgb(image: Image.Image, name: str, target_size: tuple[int, int] | None = None) -> Image.Image:
    try:
        image.load()
        # Only now: PNG may hold its EXIF block behind the pixels, and Pillow turns TIFF upright while it loads
        orientation = _orientation(image)
        if target_size is not None and image.width * image.height > MAX_PIXELS_AT_ONCE:
            image = _in_bands(image, name, target_size)
            image.getexif()[ExifTags.Base.Orientation] = orientation
        if orientation != 1:
            image = _turned(image)
        return to_rgb(image, name)
    except Exception as error:
        raise _unreadable(error, name) from error


def _turned(image: Image.Image) -> Image.Image:
    """Upright by its EXIF orientation, and without it, so that a program that loads the picture again does not turn it
    again."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block raises all sorts; the picture itself is whole
        return image


def _in_bands(image: Image.Image, name: str, target_size: tuple[int, int]) -> Image.Image:
    """A large picture brought near `target_size` by averaging whole blocks of pixels, in bands of about a megapixel:
    what its conversion to RGB takes is taken for a band at a time."""
    height, width = target_size
    across = max(int(image.width / (width * BAND_MARGIN)), 1)
    down = max(int(image.height / (height * BAND_MARGIN)), 1)
    rows = max(1_000_000 // image.width // down, 1) * down
    tops = range(0, image.height, rows)
    limits = None
    if image.mode == "F" or image.mode == "I":  # one range for all bands
        extrema = [_limits(np.asarray(_band(image, top, rows))) for top in tops]
        limits = (min(low for low, _ in extrema), max(high for _, high in extrema))
    small = Image.new("RGB", (-(-image.width // across), -(-image.height // down)))
    for top in tops:
        small.paste(to_rgb(_band(image, top, rows), name, limits).reduce((across, down)), (0, top // down))
    return small


def _band(image: Image.Image, top: int, rows: int) -> Image.Image:
    band = image.crop((0, top, image.width, min(top + rows, image.height)))
    band.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return band


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block raises all sorts; the picture next to it is whole, and most are upright
        return 1


def to_rgb(image: Image.Image, name: str, limits: tuple[float, float] | None = None) -> Image.Image:
    """In RGB; `limits` are the lowest and highest value of the picture that `image` is a part of."""
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion would cut off at 255
        image = Image.fromarray(to_uint8(np.asarray(image), name, limits))
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow leads from here to nowhere else
            image = image.convert("LA")
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=image.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _limits(array: np.ndarray) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def to_uint8(array: np.ndarray, name: str, limits: tuple[float, float] | None = None) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "uif":
        raise ValueError(f"{name}: values of type {array.dtype} are no pixels; give uint8, uint16 or floats")
    low, high = limits or _limits(array)
    if array.dtype.kind == "f":
        if low >= -1e-3 and high <= 1 + 1e-3:  # resizing overshoots a little
            return np.clip(np.rint(array * 255.0), 0, 255).astype(np.uint8)
        if low >= -0.5 and high <= 255.5:
            return np.clip(np.rint(array), 0, 255).astype(np.uint8)
        raise ValueError(f"{name}: values from {low:.4g} to {high:.4g}; floats must lie in 0..1 or in 0..255")
    is_16_bit = array.dtype.kind == "u" and array.dtype.itemsize == 2
    if low >= 0 and high <= 255 and not is_16_bit:
        return array.astype(np.uint8)
    if low >= 0 and high <= 65535:
        return (array >> 8).astype(np.uint8)
    raise ValueError(f"{name}: values from {low:.0f} to {high:.0f}; integers must lie in 0..255 or in 0..65535")


def _unreadable(error: Exception, name: str) -> Exception:
    if isinstance(error, ValueError) and str(error).startswith(f"{name}: "):
        return error  # already says what is wrong
    if isinstance(error, OSError) and error.errno is not None:  # the disk's complaint, not Pillow's
        return OSError(f"{name}: cannot be read ({error.strerror})")
    return ValueError(f"{name}: a damaged image ({_one_line(error)})")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

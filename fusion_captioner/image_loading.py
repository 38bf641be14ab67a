"""Any kind of image to an upright RGB picture, and from there to the float array a model takes.

Needs Pillow and NumPy only, so that a command or a server that runs an exported model never imports torch.

Legend: H, W: height and width in pixels; channels are always R, G, B.
"""

import base64
import os
import stat
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image

# What a picture may weigh. Pillow's own limit is the same number, but any program may have changed that one.
MAX_IMAGE_PIXELS = 178_956_970
MAX_DOWNLOAD_BYTES = 64 * 1024**2
# Pixels that models take: 4096 x 4096.
MAX_PROCESSED_PIXELS = 2**24
DOWNLOAD_TIMEOUT = 20.0  # seconds

# A JPEG is decoded small, but this much larger than needed: the resizing behind it then smooths as it would have done
# from the full size. Mean difference 1 grey level (43 dB) instead of up to 5 (28 dB) without a margin.
DRAFT_MARGIN = 1.5

RESIZE_MODES = ("squash", "crop")

# This module refuses what is too large itself; Pillow's warning about half of that is no news to whoever captions
# photos. Not `catch_warnings` around the call: that is not safe with threads, and images are loaded in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width

# How JPEG, PNG, GIF and WebP files begin in base64, which chats carry them in
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")

# Tensors are known by what they can do, so that torch need not be there: hence no type of theirs here.
ImageSource = str | os.PathLike | bytes | dict[str, Any] | Image.Image | np.ndarray | Any


def load_image(
    image: ImageSource,
    target_size: tuple[int, int] | None = None,
    name: str | None = None,
) -> Image.Image:
    """Opens an image of any kind as an upright RGB picture.

    EXIF orientation is applied, transparency is laid on white, 16-bit values are scaled to 8 bits rather than cut off,
    and of an animation the first frame is taken.

    Args:
        image: a path, an http(s) or data URL, the bytes of an image file or these in base64, `{"path": ..., "bytes": ...}` as
            `datasets.Image(decode=False)` gives (bytes first), a PIL image, or an array or tensor of shape (H, W),
            (H, W, C) or (C, H, W) with 1 to 4 channels (grey, grey and alpha, RGB, RGBA): bool, uint8, uint16 (always of
            0..65535), other integers of 0..255 or 0..65535, or floats of 0..1 or 0..255. Where both ends could be the
            channels, an array is read as (H, W, C) and a tensor as (C, H, W).
        target_size: (H, W) that the picture will be resized to. A JPEG file is then decoded at 1/2, 1/4 or 1/8 of its
            size as far as it stays half as large again as this, which takes a sixth of the time for 12 megapixels.
        name: what error messages call the image; by default its path or a description.

    Returns:
        A picture in mode RGB; for a PIL image that needs no change, the image itself.

    Raises:
        FileNotFoundError: there is no such file, or the server knows no such page.
        OSError: a folder in place of a file, no permission, or a server that cannot be reached.
        ValueError: not an image, damaged, empty, too large (see `MAX_IMAGE_PIXELS`; refused before it is decoded), or of
            a type or range that is not understood.
    """
    if isinstance(image, dict):
        if image.get("bytes") is not None:
            name, image = name or image.get("path"), image["bytes"]
        elif image.get("path") is not None:
            image = image["path"]
        else:
            raise ValueError(f'{name or "image"}: {sorted(image)} given, but neither "path" nor "bytes" has a value')

    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        return _decode(_download(image), name or image, target_size)
    if isinstance(image, str) and image[:5].lower() == "data:":
        return _decode(_read_data_url(image, name or "data URL"), name or "data URL", target_size)
    if isinstance(image, str) and len(image) > 255 and image.startswith(_BASE64_STARTS) and not os.path.exists(image):
        return _decode(_read_base64(image, name or "base64 text"), name or "base64 text", target_size)
    if isinstance(image, str | os.PathLike):
        path = os.fsdecode(image)
        return _decode(path, name or path, target_size)
    if isinstance(image, bytes | bytearray | memoryview):
        return _decode(bytes(image), name or f"image of {len(image)} bytes", target_size)
    if isinstance(image, Image.Image):
        name = name or f"PIL image of {image.width}x{image.height}"
        _check_pixels(image, name)
        return _upright_rgb(image, name)
    if hasattr(image, "__array__"):
        name = name or f"array of shape {tuple(getattr(image, 'shape', ()))}"
        return _to_rgb(_picture_of_array(image, name), name)
    raise ValueError(
        f"{name or 'image'}: a {type(image).__name__} is no image; give a path, URL, bytes, PIL image, array or tensor"
    )


def resize_image(
    image: Image.Image,
    size: tuple[int, int],
    resize_mode: str = "squash",
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Resizes a picture to exactly `size`.

    Args:
        image: any size.
        size: (H, W) in pixels.
        resize_mode: `"squash"` changes the proportions and keeps everything; `"crop"` keeps the proportions and cuts
            what hangs over at both ends of the longer side (short side to size, then centre crop, in one step).
        resample: Pillow's filter.

    Raises:
        ValueError: `resize_mode` is neither of the two.
    """
    if resize_mode not in RESIZE_MODES:
        raise ValueError(f"`resize_mode` ({resize_mode!r}) must be one of {', '.join(map(repr, RESIZE_MODES))}.")
    height, width = size
    if image.size == (width, height):
        return image
    box = None
    if resize_mode == "crop":
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        # `max`/`min`: rounding may put an edge 1e-13 outside, which Pillow refuses
        box = (
            max(left, 0),
            max(top, 0),
            min(left + width * scale, image.width),
            min(top + height * scale, image.height),
        )
    # Pictures more than twice too large are first averaged over whole blocks: 5 times faster at 12 megapixels, 46 dB
    return image.resize((width, height), resample, box=box, reducing_gap=2.0)


def load_resized_image(image: ImageSource, settings: Mapping[str, Any], name: str | None = None) -> Image.Image:
    """Opens an image and resizes it as the settings ask, so that [`images_to_pixel_values`] finds that done.

    Args:
        image, name: as in [`load_image`], which also says what is raised.
        settings: valid ones of [`FusionCaptionerImageProcessor`], of which those about the size are read.
    """
    if not settings["do_resize"]:
        return load_image(image, name=name)
    size = (settings["size"]["height"], settings["size"]["width"])
    picture = load_image(image, target_size=size, name=name)
    return resize_image(picture, size, settings["resize_mode"], Image.Resampling(settings["resample"]))


def images_to_pixel_values(
    images: Sequence[ImageSource], settings: Mapping[str, Any], names: Sequence[str | None] | None = None
) -> np.ndarray:
    """Reads and prepares images, written in place one by one, so that no second copy of the batch is ever made.

    Args:
        images: what [`load_image`] opens.
        settings: valid ones of [`FusionCaptionerImageProcessor`], all of them.
        names: what error messages call each image, None for those that have a path.

    Returns:
        float32 (B, 3, H, W).

    Raises:
        ValueError: an image that cannot be read (or FileNotFoundError, OSError), or of another size than the first with
            `do_resize` off.
    """
    target = (settings["size"]["height"], settings["size"]["width"]) if settings["do_resize"] else None
    scale, offset = normalization(
        settings["image_mean"] if settings["do_normalize"] else None,
        settings["image_std"] if settings["do_normalize"] else None,
        settings["rescale_factor"] if settings["do_rescale"] else None,
    )
    pixel_values = np.empty((len(images), 3, *(target or (0, 0))), np.float32)
    for index, image in enumerate(images):
        picture = load_resized_image(image, settings, names[index] if names else None)
        if target is None and index == 0:
            pixel_values = np.empty((len(images), 3, picture.height, picture.width), np.float32)
        height, width = pixel_values.shape[2:]
        if picture.size != (width, height):
            raise ValueError(
                f"`images` have different sizes, {height}x{width} and {picture.height}x{picture.width} (height x width); "
                "set `do_resize=True` or give images of one size."
            )
        write_normalized(picture, pixel_values[index], scale, offset)
    return pixel_values


def write_normalized(image: Image.Image, out: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> None:
    """Writes `pixel * scale + offset` of an RGB picture into `out`, without a copy of the picture in floats.

    Args:
        image: a picture of H x W.
        out: float32 (3, H, W), typically one row of a batch.
        scale, offset: float32 (3,), per channel; [`normalization`] makes them.
    """
    for channel, band in enumerate(image.split()):
        out[channel] = np.asarray(band)  # the conversion to float and to planes at once
    np.multiply(out, scale[:, None, None], out=out)
    np.add(out, offset[:, None, None], out=out)


def normalization(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, rescale_factor: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """`scale` and `offset` for [`write_normalized`]: `(pixel * rescale_factor - mean) / std` as one multiplication.

    Args:
        mean, std: per channel, or None for no normalisation.
        rescale_factor: such as 1/255, or None for no rescaling.
    """
    spread = np.asarray(std if std is not None else (1.0,) * 3, dtype=np.float64)
    centre = np.asarray(mean if mean is not None else (0.0,) * 3, dtype=np.float64)
    factor = 1.0 if rescale_factor is None else rescale_factor
    return (factor / spread).astype(np.float32), (-centre / spread).astype(np.float32)


def _download(url: str) -> bytes:
    import urllib.error  # here, since it loads the whole of HTTP and TLS, and most images are files
    import urllib.request

    try:
        # Some servers answer Python's own user agent with "403 Forbidden"
        request = urllib.request.Request(url, headers={"User-Agent": "fusion-captioner"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
            content = response.read(MAX_DOWNLOAD_BYTES + 1)
    except urllib.error.HTTPError as error:
        kind = FileNotFoundError if error.code in (404, 410) else OSError
        raise kind(f"{url}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(f"{url}: cannot be reached ({error.reason})") from error
    except TimeoutError as error:
        raise OSError(f"{url}: no answer within {DOWNLOAD_TIMEOUT:g} s") from error
    except Exception as error:  # http.client.HTTPException, ValueError of a malformed URL, ConnectionError, ...
        raise OSError(f"{url}: cannot be fetched ({_one_line(error)})") from error
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise ValueError(
            f"{url}: more than {MAX_DOWNLOAD_BYTES // 1024**2} MiB; download it and give the file instead"
        )
    return content


def _read_data_url(url: str, name: str) -> bytes:
    header, comma, data = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ValueError(f"{name}: must be of the form data:image/...;base64,...")
    return _read_base64(data, name)


def _read_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError as error:  # binascii.Error, or a character outside ASCII
        raise ValueError(f"{name}: not base64 ({error})") from error


def _decode(source: str | bytes, name: str, target_size: tuple[int, int] | None) -> Image.Image:
    """Decodes a file: `source` is its path (str) or its content (bytes)."""
    if isinstance(source, str):
        _check_file(source, name)
    elif not source:
        raise ValueError(f"{name}: the file is empty (0 bytes)")
    try:
        opened = Image.open(source if isinstance(source, str) else BytesIO(source))
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name}: not an image, or one of a format that Pillow cannot read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: too large ({_one_line(error)}); make the image smaller") from error
    except Exception as error:
        raise _unreadable(error, name) from error
    with opened as image:
        if image.format == "EPS":
            raise ValueError(f"{name}: an EPS drawing, which would be run as a program; convert it to PNG")
        _check_pixels(image, name)
        if target_size is not None and image.format in ("JPEG", "MPO"):
            height, width = target_size
            if _orientation(image) in _SIDEWAYS:
                height, width = width, height
            image.draft("RGB", (int(width * DRAFT_MARGIN), int(height * DRAFT_MARGIN)))
        return _upright_rgb(image, name)


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


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{name}: {image.width}x{image.height} pixels are too many (the limit is {MAX_IMAGE_PIXELS / 1e6:.0f} "
            "megapixels); make the image smaller"
        )


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        # Only now: PNG may hold its EXIF block behind the pixels, and Pillow turns TIFF upright while it loads
        turn = _UPRIGHT.get(_orientation(image))
        if turn is not None:
            image = image.transpose(turn)
            # Without the orientation that Pillow would carry along: whoever loads this picture again must not turn it again
            image.info = {key: value for key, value in image.info.items() if key == "transparency"}
        return _to_rgb(image, name)
    except Exception as error:
        raise _unreadable(error, name) from error


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block raises all sorts; the picture beside it is whole, and most are upright
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion would cut off at 255
        image = Image.fromarray(_to_uint8(np.asarray(image), name))
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow leads from here to nowhere else
            image = image.convert("LA")
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=image.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _picture_of_array(array: Any, name: str) -> Image.Image:
    is_tensor = hasattr(array, "detach")
    if is_tensor:
        array = array.detach().cpu()
        if "bfloat16" in str(array.dtype):  # NumPy has no such type
            array = array.float()
    array = np.asarray(array)
    if array.ndim == 3:
        first, last = (array.shape[axis] in (1, 2, 3, 4) for axis in (0, -1))
        if first and (is_tensor or not last):
            array = np.moveaxis(array, 0, -1)
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4)):
        raise ValueError(
            f"{name}: shape {array.shape} is no image; give (H, W), (H, W, C) or (C, H, W), C from 1 to 4"
        )
    if array.shape[-1] == 1 and array.ndim == 3:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array, name)))


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "uif":
        raise ValueError(f"{name}: values of type {array.dtype} are no pixels; give uint8, uint16 or floats")
    low, high = float(array.min()), float(array.max())
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


def check_processed_size(size: Any, name: str) -> None:
    """
    Raises:
        ValueError: the `size` of an image processor is no height and width, or would take gigabytes per image; `name`
            is the model that it is of.
    """
    sides = [size.get(side) for side in ("height", "width")] if isinstance(size, Mapping) else []
    whole = [side for side in sides if isinstance(side, int) and side > 0]
    if len(whole) != 2 or whole[0] * whole[1] > MAX_PROCESSED_PIXELS:
        raise ValueError(
            f"{name}: the image processor's `size` ({str(size)[:60]}) must be a height and a width of together at most "
            f"{MAX_PROCESSED_PIXELS:,} pixels; correct its config."
        )

"""Any kind of image to an upright RGB picture, and from there to the float array a model takes.

Needs Pillow and NumPy only, so that a command or a server that runs an exported model never imports torch.

Legend: H, W: height and width in pixels; channels are always R, G, B.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from .image_decoding import checked_rgb, decode_image, to_rgb, to_uint8

# Pixels that models take: 4096 x 4096.
MAX_PROCESSED_PIXELS = 2**24

RESIZE_MODES = ("squash", "crop")

# How JPEG, PNG, GIF and WebP files begin in base64, which chats carry them in
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")

# Tensors are known by what they can do, so that torch need not be there: hence no type of theirs here.
ImageSource = str | os.PathLike | bytes | dict[str, Any] | Image.Image | np.ndarray | Any


def load_image(
    image: ImageSource,
    target_size: tuple[int, int] | None = None,
    name: str | None = None,
    public_only: bool = False,
) -> Image.Image:
    """Opens an image of any kind as an upright RGB picture.

    EXIF orientation is applied, transparency is laid on white, 16-bit values are scaled to 8 bits rather than cut off,
    and of an animation the first frame is taken.

    Args:
        image: a path, an http(s) or data URL, the bytes of an image file or these in base64, `{"path": ..., "bytes":
            ...}` as `datasets.Image(decode=False)` gives (bytes first), a PIL image, or an array or tensor of shape
            (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels (grey, grey and alpha, RGB, RGBA): bool, uint8, uint16
            (always of 0..65535), other integers of 0..255 or 0..65535, or floats of 0..1 or 0..255. Where both ends
            could be the channels, an array is read as (H, W, C) and a tensor as (C, H, W).
        target_size: (H, W) that the picture will be resized to. A JPEG file is then decoded at 1/2, 1/4 or 1/8 of its
            size as far as it does not fall below this, which takes a sixth of the time for 12 megapixels.
            Large pictures of other kinds are brought near this size in bands of rows, before anything else is done.
        name: what error messages call the image; by default its path or a description.
        public_only: refuse URLs of servers that are not public; see [`~fusion_captioner.image_downloads.download`].

    Returns:
        A picture in mode RGB; for a PIL image that needs no change, the image itself.

    Raises:
        FileNotFoundError: there is no such file, or the server knows no such page.
        OSError: a folder in place of a file, no permission, or a server that cannot be reached.
        ValueError: not an image, damaged, empty, too large (see `image_decoding.py`; refused
            before it is decoded), or of a type or range that is not understood.
    """
    if isinstance(image, dict):
        if image.get("bytes") is not None:
            name, image = name or image.get("path"), image["bytes"]
        elif image.get("path") is not None:
            image = image["path"]
        else:
            raise ValueError(f'{name or "image"}: {sorted(image)} given, but neither "path" nor "bytes" has a value')

    if is_url(image):
        from .image_downloads import download  # which loads all of HTTP and TLS, and most images are files

        return decode_image(download(image, public_only), name or image, target_size)
    if isinstance(image, str) and image[:5].lower() == "data:":
        return decode_image(read_data_url(image, name or "data URL"), name or "data URL", target_size)
    if isinstance(image, str) and len(image) > 255 and image.startswith(_BASE64_STARTS) and not os.path.exists(image):
        return decode_image(_read_base64(image, name or "base64 text"), name or "base64 text", target_size)
    if isinstance(image, str | os.PathLike):
        path = os.fsdecode(image)
        return decode_image(path, name or path, target_size)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image), name or f"image of {len(image)} bytes", target_size)
    if isinstance(image, Image.Image):
        return checked_rgb(image, name or f"PIL image of {image.width}x{image.height}")
    if hasattr(image, "__array__"):
        name = name or f"array of shape {tuple(getattr(image, 'shape', ()))}"
        return to_rgb(_picture_of_array(image, name), name)
    raise ValueError(
        f"{name or 'image'}: a {type(image).__name__} is no image; give a path, URL, bytes, PIL image, array or tensor"
    )


def is_url(name: object) -> TypeGuard[str]:
    """Whether `name` is an http or https URL, in whatever case its scheme is written."""
    return isinstance(name, str) and name[:8].lower().startswith(("http://", "https://"))


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
    box = seen_box((image.height, image.width), size, resize_mode)
    # Pictures more than twice too large are first averaged over whole blocks: 5 times faster at 12 megapixels, 46 dB
    return image.resize((width, height), resample, box=box, reducing_gap=2.0)


def seen_box(
    image_size: tuple[int, int], size: tuple[int, int], resize_mode: str
) -> tuple[float, float, float, float]:
    """The part of a picture that [`resize_image`] keeps.

    Args:
        image_size, size: (H, W) of the picture and of the result.
        resize_mode: see [`resize_image`].

    Returns:
        left, upper, right and lower edge, in pixels of the picture.
    """
    image_height, image_width = image_size
    if resize_mode == "squash":
        return 0.0, 0.0, float(image_width), float(image_height)
    height, width = size
    scale = min(image_width / width, image_height / height)
    left, top = (image_width - width * scale) / 2, (image_height - height * scale) / 2
    # `max`/`min`: rounding may put an edge 1e-13 outside, which Pillow refuses
    return (
        max(left, 0.0),
        max(top, 0.0),
        min(left + width * scale, image_width),
        min(top + height * scale, image_height),
    )


def load_resized_image(image: ImageSource, settings: Mapping[str, Any], name: str | None = None) -> Image.Image:
    """Opens an image and resizes it as the settings ask, so that [`images_to_pixel_values`] finds that done.

    Args:
        image, name: as in [`load_image`], which also says what is raised.
        settings: valid ones of [`FusionCaptionerImageProcessor`], of which those about the size are read.
    """
    size = target_size(settings)
    picture = load_image(image, target_size=size, name=name)
    if size is None:
        return picture
    return resize_image(picture, size, settings["resize_mode"], Image.Resampling(settings["resample"]))


def target_size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """The (H, W) that pictures are resized to by these settings; None: they keep their size."""
    return (settings["size"]["height"], settings["size"]["width"]) if settings["do_resize"] else None


def images_to_pixel_values(
    images: Sequence[ImageSource],
    settings: Mapping[str, Any],
    names: Sequence[str | None] | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Reads and prepares images, written in place one by one, so that no second copy of the batch is ever made.

    Args:
        images: what [`load_image`] opens.
        settings: valid ones of [`FusionCaptionerImageProcessor`], all of them.
        names: what error messages call each image, None for those that have a path.
        threads: that read images at the same time, where all of them are names or bytes of files.

    Returns:
        float32 (B, 3, H, W).

    Raises:
        ValueError: an image that cannot be read (or FileNotFoundError, OSError), or of another size than the first
            with `do_resize` off.
    """
    target = target_size(settings)
    scale, offset = normalization(
        settings["image_mean"] if settings["do_normalize"] else None,
        settings["image_std"] if settings["do_normalize"] else None,
        settings["rescale_factor"] if settings["do_rescale"] else None,
    )
    pixel_values = np.empty((len(images), 3, *(target or (0, 0))), np.float32)

    def write(index: int, image: ImageSource) -> None:
        nonlocal pixel_values
        picture = load_resized_image(image, settings, names[index] if names else None)
        if target is None and index == 0:
            pixel_values = np.empty((len(images), 3, picture.height, picture.width), np.float32)
        height, width = pixel_values.shape[2:]
        if picture.size != (width, height):
            raise ValueError(
                f"`images` have different sizes, {height}x{width} and {picture.height}x{picture.width} (height x "
                "width); set `do_resize=True` or give images of one size."
            )
        write_normalized(picture, pixel_values[index], scale, offset)

    threads = min(threads, len(images))
    if threads > 1 and target is not None and isinstance(images, list | tuple) and all(map(_is_file, images)):
        with ThreadPoolExecutor(threads, thread_name_prefix="read-image") as pool:
            try:
                written = pool.map(write, range(len(images)), images)
            except RuntimeError:  # no thread can be started once Python has begun to end
                written = map(write, range(len(images)), images)
            list(written)
    else:
        for index, image in enumerate(images):
            write(index, image)
    return pixel_values


def _is_file(image: ImageSource) -> bool:
    """Whether `image` is the name of a file or its bytes: not a PIL image, which may come twice and cannot be read by
    two threads at once, and not a URL, whose download would hold up an error or Ctrl-C."""
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    return isinstance(image, str | os.PathLike | bytes) and not is_url(image)


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

    Raises:
        ValueError: float32 does not hold what they make of pixels.
    """
    spread = np.asarray(std if std is not None else (1.0,) * 3, dtype=np.float64)
    centre = np.asarray(mean if mean is not None else (0.0,) * 3, dtype=np.float64)
    factor = 1.0 if rescale_factor is None else rescale_factor
    with np.errstate(over="ignore", invalid="ignore"):
        scale, offset = (factor / spread).astype(np.float32), (-centre / spread).astype(np.float32)
        is_finite = np.isfinite(255 * scale + offset).all()
    if not is_finite:
        raise ValueError(
            f"`image_mean` ({mean!r}), `image_std` ({std!r}) and `rescale_factor` ({rescale_factor!r}) make pixel "
            "values that are no numbers; give such as 0.5, 0.5 and 1/255."
        )
    return scale, offset


def read_data_url(url: str, name: str) -> bytes:
    """The content of a data URL in base64; `name` is what error messages call it.

    Raises:
        ValueError: it is of another form, or not base64.
    """
    header, comma, data = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ValueError(f"{name}: must be of the form data:image/...;base64,...")
    return _read_base64(data, name)


def _read_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:  # binascii.Error, or a character outside ASCII
        raise ValueError(f"{name}: not base64 ({error})") from error


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
    return Image.fromarray(np.ascontiguousarray(to_uint8(array, name)))


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
            f"{name}: the image processor's `size` ({str(size)[:60]}) must be a height and a width of together at "
            f"most {MAX_PROCESSED_PIXELS:,} pixels; correct its config."
        )

"""Pictures brought to the size that a model takes.

Pillow's loops take a pixel at a time. The same sums are products with matrices that are zero but for a band, which
NumPy computes faster, and into floats in planes, as models take them. Needs Pillow and NumPy only.

Legend: H, W: height and width in pixels; channels are always R, G, B.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

RESIZE_MODES = ("squash", "crop")

# A picture this much larger than wanted is first averaged over whole blocks: 5 times faster at 12 megapixels, 46 dB.
REDUCED_FROM = 4
# Multiplications of one product at most: above this OpenBLAS starts threads, and images are read in threads already.
PRODUCT_SIZE = 2**19


def resize_image(
    image: Image.Image,
    size: tuple[int, int],
    resize_mode: str = "squash",
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Resizes an RGB picture to exactly `size`.

    Args:
        image: any size.
        size: (H, W) in pixels.
        resize_mode: `"squash"` changes the proportions and keeps everything; `"crop"` keeps the proportions and cuts
            what hangs over at both ends of the longer side (short side to size, then centre crop, in one step).
        resample: Pillow's filter.

    Raises:
        ValueError: `resize_mode` is neither of the two.
    """
    if image.size == size[::-1] and resize_mode in RESIZE_MODES:
        return image
    planes = np.empty((3, *size), np.float32)
    write_resized(image, planes, resize_mode, resample)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes.astype(np.uint8)])


def write_resized(
    image: Image.Image,
    out: np.ndarray,
    resize_mode: str = "squash",
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> None:
    """Writes the picture that [`resize_image`] gives into planes, in whole numbers of 0..255.

    Bilinear and bicubic values differ from Pillow's by what Pillow rounds and cuts off between its two passes: one in
    seven by a grey level, one in 4,000 by more.

    Args:
        image, resize_mode, resample: see [`resize_image`].
        out: float32 (3, H, W).
    """
    if resize_mode not in RESIZE_MODES:
        raise ValueError(f"`resize_mode` ({resize_mode!r}) must be one of {', '.join(map(repr, RESIZE_MODES))}.")
    height, width = out.shape[1:]
    left, upper, right, lower = box = seen_box((image.height, image.width), (height, width), resize_mode)
    is_large = max((right - left) / width, (lower - upper) / height) >= REDUCED_FROM
    if image.size != (width, height) and (is_large or resample not in _KERNELS):
        image = image.resize((width, height), resample, box=box, reducing_gap=REDUCED_FROM / 2)
    if image.size == (width, height):
        for plane, band in zip(out, image.split(), strict=True):
            plane[...] = np.asarray(band)
        return
    rows = np.empty((height, image.width), np.float32)
    for plane, band in zip(out, image.split(), strict=True):
        pixels = np.asarray(band)
        for made, seen, weights in _bands(image.height, upper, lower, height, resample, image.width):
            np.matmul(weights, pixels[seen].astype(np.float32), out=rows[made])
        for made, seen, weights in _bands(image.width, left, right, width, resample, height):
            np.matmul(rows[:, seen], weights.T, out=plane[:, made])
        np.rint(plane, out=plane)
        np.clip(plane, 0, 255, out=plane)


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


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5, as Pillow's."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


# Each filter with the distance from its centre at which it ends
_KERNELS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    Image.Resampling.BILINEAR: (_triangle, 1),
    Image.Resampling.BICUBIC: (_cubic, 2),
}


@lru_cache(maxsize=64)
def _bands(
    length: int, low: float, high: float, size: int, resample: int, others: int
) -> list[tuple[slice, slice, np.ndarray]]:
    """
    The matrix of a filter by which the pixels from `low` to `high`, of `length`, become `size`, in bands of as many
    pixels as a product may have, where each is made `others` times.

    Returns:
        of each band the pixels that are made, those that they are made of, and the weights (made, seen).
    """
    kernel, radius = _KERNELS[resample]
    step = (high - low) / size
    stretch = max(step, 1.0)  # making a picture smaller averages over all its pixels
    centres = low + (np.arange(size) + 0.5) * step
    taps = min(int(2 * radius * stretch) + 2, length)
    first = np.clip((centres - radius * stretch + 0.5).astype(int), 0, length - taps)
    weights = kernel((first[:, None] + np.arange(taps) + 0.5 - centres[:, None]) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)

    rows = next(rows for rows in (16, 8, 4, 2, 1) if rows == 1 or rows * (rows * step + taps) * others < PRODUCT_SIZE)
    band, row = np.divmod(np.arange(size), rows)
    width = taps + int((first - first[::rows][band]).max())
    starts = np.minimum(first[::rows], length - width)
    matrix = np.zeros((len(starts), rows, width), np.float32)
    matrix[band[:, None], row[:, None], (first - starts[band])[:, None] + np.arange(taps)] = weights
    return [
        (slice(made, made + rows), slice(start, start + width), band_weights[: size - made])
        for made, start, band_weights in zip(range(0, size, rows), starts.tolist(), matrix, strict=True)
    ]

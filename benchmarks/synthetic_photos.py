"""Photos for benchmarks: with coarse and fine detail, so that JPEG has as much to do with them as with those of a
camera."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

COARSE = 512  # pixels across what is drawn; it is enlarged to the size of the photo


def write_photos(folder: Path, number: int, width: int, height: int) -> list[str]:
    """So many JPEG files of quality 90, no two alike."""
    paths = []
    for index in range(number):
        random = np.random.default_rng(index)
        rows = max(1, COARSE * height // width)
        pixels = np.full((rows, COARSE, 3), 128, np.float32)
        # each octave half as strong as the one below it: amplitudes fall as 1/f, as those of photographs do
        cells, strength = 4, 60.0
        while cells <= COARSE:
            coarse = random.standard_normal((max(2, cells * rows // COARSE), cells, 3)).astype(np.float32)
            for channel in range(3):
                octave = Image.fromarray(coarse[..., channel]).resize((COARSE, rows), Image.Resampling.BILINEAR)
                pixels[..., channel] += strength * np.asarray(octave)
            cells, strength = 2 * cells, strength / 2
        photo = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        grain = Image.effect_noise((width, height), 8.0)  # around 128, as a sensor's
        photo = ImageChops.add(photo, Image.merge("RGB", (grain,) * 3), offset=-128)
        paths.append(str(folder / f"{width}x{height}_{index}.jpg"))
        photo.save(paths[-1], quality=90)
    return paths

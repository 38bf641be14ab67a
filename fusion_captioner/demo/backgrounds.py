"""Backgrounds for the demonstration's data: eight places, each a little different every time, by Pillow and NumPy."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fusion_captioner.demo.drawing import KINDS

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Background:
    """A place.

    Attributes:
        paint: draws it into a large picture, given a source of chance.
        ground: height at which the ground begins, as a fraction of the picture's height from the top.
        shadow: colour under a thing that stands there.
        kinds: the kinds of thing that may be there.
        hidden_colours: colours that would vanish before it.
    """

    paint: Callable[[Image.Image, Random], None]
    ground: float
    shadow: RGB
    kinds: tuple[str, ...]
    hidden_colours: tuple[str, ...]


def _near(rng: Random, colour: RGB, spread: int = 10) -> RGB:
    """A colour near another, a little lighter or darker as a whole."""
    shift = rng.randint(-spread, spread)
    red, green, blue = (max(0, min(255, c + shift + rng.randint(-3, 3))) for c in colour)
    return red, green, blue


def _gradient(picture: Image.Image, top: RGB, bottom: RGB, y0: float, y1: float) -> None:
    """Fill the rows from y0 to y1 (fractions) with colours from `top` to `bottom`."""
    width, height = picture.size
    first, last = round(y0 * height), round(y1 * height)
    column = np.linspace(top, bottom, last - first).astype(np.uint8)[:, None, :]
    picture.paste(Image.fromarray(column, "RGB").resize((width, last - first)), (0, first))


def _clouds(picture: Image.Image, rng: Random, below: float) -> None:
    width, height = picture.size
    # A cloud has no edges worth keeping: an eighth of the size is plenty.
    mask = Image.new("L", (width // 8, height // 8))
    draw = ImageDraw.Draw(mask)
    for _ in range(rng.randint(1, 3)):
        x, y = rng.uniform(0, width / 8), rng.uniform(0.05, below) * height / 8
        for _ in range(4):
            cx, cy, r = x + rng.uniform(-6, 6), y + rng.uniform(-1, 1), rng.uniform(2, 4)
            draw.ellipse((cx - 1.6 * r, cy - 0.7 * r, cx + 1.6 * r, cy + 0.7 * r), fill=190)
    mask = mask.filter(ImageFilter.GaussianBlur(1)).resize(picture.size, Image.Resampling.BILINEAR)
    picture.paste((250, 252, 255), (0, 0, width, height), mask)


def _hills(picture: Image.Image, rng: Random, colour: RGB, top: float, bottom: float, rough: float = 0.05) -> None:
    """A ridge that waves about `top`, filled down to `bottom` (fractions)."""
    width, height = picture.size
    phase, waves = rng.uniform(0, 6.3), rng.uniform(0.8, 1.6)
    x = np.linspace(0, 1, 40)
    ridge = top + rough * (np.sin(6.3 * waves * x + phase) + 0.4 * np.sin(14 * x + 2 * phase)) / 1.4
    path = [(float(a) * width, float(b) * height) for a, b in zip(x, ridge, strict=True)]
    ImageDraw.Draw(picture).polygon([*path, (width, bottom * height), (0, bottom * height)], fill=colour)


def _specks(
    picture: Image.Image, rng: Random, count: int, band: tuple[float, float], size: tuple[float, float], *colours: RGB
) -> None:
    """Small ellipses scattered over a band of rows; `size` is width and height, fractions of the picture's width."""
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    for _ in range(count):
        x, y = rng.random() * width, rng.uniform(*band) * height
        w, h = size[0] * width * rng.uniform(0.6, 1.2), size[1] * width * rng.uniform(0.6, 1.2)
        draw.ellipse((x, y, x + w, y + h), fill=rng.choice(colours))


def _meadow(picture: Image.Image, rng: Random) -> None:
    width, height = picture.size
    _gradient(picture, _near(rng, (130, 190, 235)), _near(rng, (205, 228, 240)), 0, 0.62)
    _clouds(picture, rng, 0.4)
    _hills(picture, rng, _near(rng, (126, 172, 110)), 0.52, 0.66)
    _hills(picture, rng, _near(rng, (132, 188, 84)), 0.6, 0.75, 0.02)
    _gradient(picture, _near(rng, (132, 188, 84)), _near(rng, (84, 148, 56)), 0.66, 1)
    draw = ImageDraw.Draw(picture)
    for _ in range(110):
        x, y = rng.random() * width, rng.uniform(0.63, 1.02) * height
        blade = (0.012 + 0.03 * (y / height - 0.6)) * height
        shade = rng.choice([(70, 130, 46), (104, 164, 66), (150, 200, 96)])
        draw.line((x, y, x + rng.uniform(-0.5, 0.5) * blade, y - blade), fill=shade, width=3)
    _specks(picture, rng, 14, (0.66, 0.98), (0.011, 0.011), (250, 250, 240), (250, 226, 110), (240, 160, 190))


def _beach(picture: Image.Image, rng: Random) -> None:
    _gradient(picture, _near(rng, (110, 182, 236)), _near(rng, (214, 234, 244)), 0, 0.44)
    _clouds(picture, rng, 0.3)
    _gradient(picture, _near(rng, (36, 122, 172)), _near(rng, (92, 186, 196)), 0.42, 0.62)
    _specks(picture, rng, 16, (0.45, 0.57), (0.06, 0.004), (160, 214, 224), (220, 240, 242))
    _hills(picture, rng, (240, 246, 244), 0.6, 0.7, 0.015)
    sand = _near(rng, (234, 212, 160))
    _hills(picture, rng, sand, 0.625, 0.72, 0.015)
    _gradient(picture, sand, _near(rng, (216, 188, 130)), 0.655, 1)
    _specks(picture, rng, 90, (0.66, 1), (0.008, 0.005), (200, 172, 118), (246, 230, 188))


def _night(picture: Image.Image, rng: Random) -> None:
    width, height = picture.size
    _gradient(picture, _near(rng, (12, 14, 44), 5), _near(rng, (44, 50, 98), 8), 0, 0.7)
    _specks(picture, rng, 45, (0, 0.6), (0.008, 0.008), (236, 236, 220), (180, 190, 230))
    x, y, r = rng.choice([0.1, 0.9]) * width, rng.uniform(0.09, 0.13) * height, 0.06 * width
    draw = ImageDraw.Draw(picture)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(244, 240, 214))
    draw.ellipse((x - 0.5 * r, y - 0.4 * r, x - 0.1 * r, y), fill=(222, 216, 190))
    _hills(picture, rng, (30, 38, 66), 0.58, 0.7)
    _hills(picture, rng, (36, 54, 60), 0.65, 0.8, 0.02)
    _gradient(picture, (36, 54, 60), (50, 72, 66), 0.7, 1)
    _specks(picture, rng, 40, (0.7, 1), (0.02, 0.005), (44, 64, 62), (62, 86, 78))


def _brick_wall(picture: Image.Image, rng: Random) -> None:
    width, height = picture.size
    picture.paste(_near(rng, (206, 190, 178)), (0, 0, width, height))
    draw = ImageDraw.Draw(picture)
    tone = _near(rng, (166, 92, 70), 14)
    high, wide, joint = height * rng.uniform(0.06, 0.075), width * rng.uniform(0.14, 0.17), 0.009 * width
    for row in range(int(0.82 * height / high) + 1):
        for column in range(int(width / wide) + 2):
            x = (column - (0.5 if row % 2 else 0.0)) * wide
            draw.rectangle((x, row * high, x + wide - joint, (row + 1) * high - joint), fill=_near(rng, tone, 14))
    _gradient(picture, _near(rng, (164, 162, 160)), _near(rng, (190, 188, 184)), 0.82, 1)
    draw.line((0, 0.82 * height, width, 0.82 * height), fill=(96, 92, 90), width=4)
    _specks(picture, rng, 30, (0.84, 1), (0.01, 0.006), (150, 148, 146), (204, 202, 198))


def _wooden_table(picture: Image.Image, rng: Random) -> None:
    width, height = picture.size
    wall = _near(rng, rng.choice([(214, 220, 210), (226, 214, 220), (208, 218, 230), (236, 228, 208)]), 6)
    _gradient(picture, wall, _near(rng, wall, 4), 0, 0.6)
    draw = ImageDraw.Draw(picture)
    tone = _near(rng, (168, 118, 72), 14)
    vanishing = rng.uniform(0.4, 0.6)
    for plank in range(-6, 12):
        near0, near1 = 0.5 + (plank / 6 - 0.5) * 1.6, 0.5 + ((plank + 1) / 6 - 0.5) * 1.6
        far0, far1 = (vanishing + (near - vanishing) * 0.5 for near in (near0, near1))
        corners = [(far0, 0.58), (far1, 0.58), (near1, 1), (near0, 1)]
        path = [(x * width, y * height) for x, y in corners]
        draw.polygon(path, fill=_near(rng, tone, 9), outline=(104, 70, 42), width=3)
        for _ in range(3):
            t = rng.random()
            a, b = far0 + t * (far1 - far0), near0 + t * (near1 - near0)
            draw.line((a * width, 0.58 * height, b * width, height), fill=_near(rng, (140, 94, 56), 8), width=2)
    draw.line((0, 0.58 * height, width, 0.58 * height), fill=(110, 76, 48), width=6)


def _snow(picture: Image.Image, rng: Random) -> None:
    _gradient(picture, _near(rng, (160, 178, 200)), _near(rng, (206, 216, 228)), 0, 0.66)
    _hills(picture, rng, _near(rng, (214, 224, 236), 5), 0.5, 0.7)
    _hills(picture, rng, _near(rng, (236, 242, 250), 4), 0.62, 0.75, 0.025)
    _gradient(picture, (238, 243, 250), _near(rng, (222, 230, 244), 4), 0.68, 1)
    _specks(picture, rng, 12, (0.7, 1), (0.12, 0.008), (212, 222, 238), (250, 252, 255))
    _specks(picture, rng, 60, (0, 1), (0.012, 0.012), (252, 253, 255))


def _sea(picture: Image.Image, rng: Random) -> None:
    width, height = picture.size
    _gradient(picture, _near(rng, (128, 190, 238)), _near(rng, (220, 236, 244)), 0, 0.46)
    _clouds(picture, rng, 0.32)
    _gradient(picture, _near(rng, (40, 124, 178)), _near(rng, (22, 92, 146)), 0.44, 1)
    draw = ImageDraw.Draw(picture)
    for _ in range(34):
        y = rng.uniform(0.47, 1)
        x, w = rng.random() * width, (0.02 + 0.12 * (y - 0.4)) * width
        shade = rng.choice([(120, 186, 214), (70, 150, 196), (190, 224, 234)])
        draw.arc((x - w, y * height - w / 3, x + w, y * height + w / 3), 200, 340, fill=shade, width=4)


def _road(picture: Image.Image, rng: Random) -> None:
    width, height = picture.size
    _gradient(picture, _near(rng, (150, 198, 232)), _near(rng, (222, 230, 232)), 0, 0.56)
    _clouds(picture, rng, 0.36)
    _hills(picture, rng, _near(rng, (176, 168, 130)), 0.5, 0.66, 0.03)
    _gradient(picture, _near(rng, (182, 174, 120)), _near(rng, (160, 152, 104)), 0.6, 0.68)
    _gradient(picture, _near(rng, (112, 112, 116)), _near(rng, (88, 88, 94)), 0.67, 1)
    draw = ImageDraw.Draw(picture)
    draw.line((0, 0.685 * height, width, 0.685 * height), fill=(226, 224, 214), width=5)
    start = rng.uniform(-0.2, 0)
    for dash in range(6):
        x = start + 0.24 * dash
        corners = [(x, 0.87), (x + 0.12, 0.87), (x + 0.11, 0.9), (x - 0.01, 0.9)]
        draw.polygon([(a * width, b * height) for a, b in corners], fill=(234, 228, 206))
    _specks(picture, rng, 60, (0.7, 1), (0.008, 0.004), (100, 100, 104), (124, 124, 128))


_EVERYTHING = tuple(KINDS)
_TOYS = ("ball", "boat", "car", "cup", "fish", "house", "mushroom", "kite", "star")

BACKGROUNDS: dict[str, Background] = {
    "meadow": Background(_meadow, 0.72, (62, 104, 44), _EVERYTHING, ("green",)),
    "beach": Background(_beach, 0.72, (150, 124, 84), _EVERYTHING, ()),
    # The sky at night is full of stars: how many there are could not be told.
    "night": Background(_night, 0.74, (22, 32, 38), tuple(k for k in KINDS if k != "star"), ("black",)),
    "brick wall": Background(_brick_wall, 0.86, (92, 90, 90), _EVERYTHING, ("red",)),
    "wooden table": Background(_wooden_table, 0.7, (92, 60, 36), _TOYS, ()),
    "snow": Background(_snow, 0.72, (168, 182, 206), _EVERYTHING, ("white",)),
    "sea": Background(_sea, 0.62, (206, 232, 240), ("ball", "boat", "fish", "kite", "star"), ("blue",)),
    "road": Background(_road, 0.74, (52, 52, 58), _EVERYTHING, ("black",)),
}


def draw_background(name: str, size: int, rng: Random) -> Image.Image:
    """Paint a place.

    Args:
        name: a key of `BACKGROUNDS`.
        size: side of the picture, pixels.
        rng: source of chance; the same state paints the same picture.

    Returns:
        An RGB picture, (size, size), with a grain like a camera's.
    """
    large = Image.new("RGB", (size * 2, size * 2))
    BACKGROUNDS[name].paint(large, rng)
    pixels = np.asarray(large.reduce(2)).astype(np.float32)
    grain = np.random.default_rng(rng.getrandbits(63)).standard_normal((size, size, 1), dtype=np.float32)
    return Image.fromarray((pixels * rng.uniform(0.9, 1.08) + 4 * grain).clip(0, 255).astype(np.uint8))

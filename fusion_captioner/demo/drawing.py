"""Drawing for the demonstration's data: ten kinds of thing and four textures, with Pillow and numpy alone.

A thing is a list of parts in a frame of its own (x to the right, y downwards); `draw_thing` fits that frame into the
box it is given, so that the box of a composed scene is the box of what is seen.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

# Polygons are drawn this many times larger and averaged down: 9 levels of coverage an edge pixel, for a few
# milliseconds a picture.
SUPERSAMPLING = 3

COLOURS = {
    "red": (214, 38, 38),
    "orange": (246, 134, 28),
    "yellow": (250, 214, 40),
    "green": (46, 158, 66),
    "blue": (38, 92, 206),
    "purple": (136, 58, 172),
    "white": (246, 246, 242),
    "black": (38, 38, 42),
}
TEXTURES = ("plain", "striped", "spotted", "checked")

_INK = (40, 34, 38)
_WOOD = (122, 82, 50)
_GLASS = (196, 226, 240)
_CREAM = (244, 230, 204)
_STEEL = (206, 208, 214)

Points = np.ndarray  # (N, 2), float: x, y


@dataclass(frozen=True)
class Part:
    """A piece of a thing.

    Attributes:
        points: corners of a polygon, or of an open line where `line_width` is positive, (N, 2).
        fill: an RGB colour, or None for the thing's own colour and texture.
        line_width: width of an open line in units of the thing's height; 0 for a filled, outlined polygon.
    """

    points: Points
    fill: tuple[int, int, int] | None = None
    line_width: float = 0.0


@dataclass(frozen=True)
class Kind:
    """A kind of thing: its parts from back to front, and how it is placed.

    Attributes:
        parts: drawn in this order.
        size: height in a scene relative to the other kinds.
        airborne: hangs in the air rather than standing on the ground.
        tilt: largest rotation either way, degrees.
    """

    parts: tuple[Part, ...]
    size: float
    airborne: bool = False
    tilt: float = 0.0

    @property
    def aspect(self) -> float:
        """Width divided by height of all parts together."""
        width, height = np.ptp(np.concatenate([part.points for part in self.parts]), axis=0)
        return float(width / height)


def _points(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=float)


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return _points((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _arc(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> Points:
    """Points along an ellipse from angle `start` to `stop`, degrees, clockwise on the screen from three o'clock."""
    angle = np.radians(np.linspace(start, stop, 40))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)


def _star_outline() -> Points:
    angle = np.radians(np.arange(10) * 36 - 90)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _crown_outline() -> Points:
    angle = np.linspace(0, 2 * np.pi, 80)
    radius = 1 + 0.08 * np.abs(np.sin(4 * angle)) * 2 - 0.08
    return np.stack([0.95 * radius * np.cos(angle), -0.9 + 0.85 * radius * np.sin(angle)], axis=1)


def _wheel(x: float) -> tuple[Part, Part]:
    return Part(_arc(x, 0.86, 0.17, 0.17), _INK), Part(_arc(x, 0.86, 0.075, 0.075), _STEEL)


KINDS: dict[str, Kind] = {
    "ball": Kind(
        (
            Part(_arc(0, 0, 1, 1)),
            Part(_arc(-1.15, 0, 0.85, 1.1, -52, 52), _INK, 0.045),
            Part(_arc(1.15, 0, 0.85, 1.1, 128, 232), _INK, 0.045),
        ),
        size=0.8,
        tilt=180,
    ),
    "boat": Kind(
        (
            Part(_box(-0.05, -1.1, 0.05, 0.4), _WOOD),
            Part(_points((0.12, -1.05), (0.95, 0.2), (0.12, 0.2))),
            Part(_points((-0.12, -0.8), (-0.12, 0.2), (-0.75, 0.2))),
            Part(_points((-1.15, 0.36), (1.2, 0.36), (0.8, 0.9), (-0.8, 0.9))),
        ),
        size=1.05,
        tilt=4,
    ),
    "car": Kind(
        (
            Part(
                _points(
                    (-1.1, 0.84),
                    (-1.1, 0.42),
                    (-0.98, 0.32),
                    (-0.66, 0.28),
                    (-0.4, -0.14),
                    (0.34, -0.14),
                    (0.66, 0.28),
                    (1.0, 0.38),
                    (1.12, 0.5),
                    (1.12, 0.84),
                )
            ),
            Part(_points((-0.48, 0.26), (-0.3, -0.02), (-0.06, -0.02), (-0.06, 0.26)), _GLASS),
            Part(_points((0.06, 0.26), (0.06, -0.02), (0.26, -0.02), (0.48, 0.26)), _GLASS),
            *_wheel(-0.62),
            *_wheel(0.64),
        ),
        size=0.72,
    ),
    "cup": Kind(
        (
            Part(np.concatenate([_arc(0.68, 0.1, 0.42, 0.46, -95, 95), _arc(0.68, 0.1, 0.22, 0.26, 95, -95)])),
            Part(np.concatenate([_points((0.78, -0.8)), _arc(0, 0.72, 0.6, 0.16, 10, 170), _points((-0.78, -0.8))])),
            Part(_arc(0, -0.8, 0.78, 0.18), (92, 62, 48)),
        ),
        size=0.85,
    ),
    "fish": Kind(
        (
            Part(_points((0.6, 0), (1.25, -0.5), (1.1, 0), (1.25, 0.5))),
            Part(_points((-0.2, -0.45), (0.3, -0.82), (0.5, -0.3))),
            Part(np.concatenate([_arc(0.05, 0.42, 1.02, 1.02, -150, -40), _arc(0.05, -0.42, 1.02, 1.02, 40, 150)])),
            Part(_arc(-0.85, 0.0, 0.45, 0.5, -48, 48), _INK, 0.04),
            Part(_arc(-0.6, -0.14, 0.16, 0.16), (250, 250, 250)),
            Part(_arc(-0.63, -0.14, 0.08, 0.08), _INK),
        ),
        size=0.66,
        tilt=8,
    ),
    "house": Kind(
        (
            Part(_box(0.42, -0.85, 0.62, -0.3), (120, 92, 88)),
            Part(_box(-0.85, -0.1, 0.85, 1.0)),
            Part(_points((-1.08, -0.05), (0, -0.98), (1.08, -0.05)), (104, 84, 84)),
            Part(_box(-0.2, 0.42, 0.16, 1.0), _WOOD),
            Part(_box(-0.66, 0.16, -0.36, 0.5), _GLASS),
            Part(_box(0.34, 0.16, 0.64, 0.5), _GLASS),
        ),
        size=1.15,
    ),
    "kite": Kind(
        (
            Part(np.stack([0.16 * np.sin(np.linspace(0, 11, 40)), np.linspace(1.1, 2.1, 40)], axis=1), _INK, 0.03),
            Part(_points((-0.16, 1.32), (0.16, 1.5), (0.16, 1.32), (-0.16, 1.5))),
            Part(_points((-0.2, 1.74), (0.14, 1.92), (0.14, 1.74), (-0.2, 1.92))),
            Part(_points((0, -1), (0.85, -0.2), (0, 1.12), (-0.85, -0.2))),
            Part(_points((0, -1), (0, 1.12)), _INK, 0.028),
            Part(_points((0.85, -0.2), (-0.85, -0.2)), _INK, 0.028),
        ),
        size=1.15,
        airborne=True,
        tilt=24,
    ),
    "mushroom": Kind(
        (
            Part(_points((-0.26, 0), (0.26, 0), (0.36, 0.85), (0.2, 0.95), (-0.2, 0.95), (-0.36, 0.85)), _CREAM),
            Part(np.concatenate([_arc(0, 0.1, 1, 0.95, 180, 360), _arc(0, 0.1, 1.0, 0.18, 0, 180)])),
        ),
        size=0.85,
        tilt=4,
    ),
    "star": Kind((Part(_star_outline()),), size=0.85, airborne=True, tilt=15),
    "tree": Kind(
        (
            Part(_points((-0.18, -0.3), (0.18, -0.3), (0.22, 0.9), (-0.22, 0.9)), _WOOD),
            Part(_crown_outline()),
        ),
        size=1.2,
    ),
}


def _stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((x + 0.45 * y) / 0.26) % 1 < 0.42


def _spots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    row = np.floor(y / 0.22)
    dx = (x / 0.25 + 0.5 * (row % 2)) % 1 - 0.5
    dy = y / 0.22 - row - 0.5
    return dx**2 + dy**2 < 0.09


def _checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.floor(x / 0.15) + np.floor(y / 0.15)) % 2 == 0


# Where the second, paler colour shows; x and y in units of the thing's smaller side.
_PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "striped": _stripes,
    "spotted": _spots,
    "checked": _checks,
}


def _texture(
    texture: str, colour: tuple[int, int, int], size: tuple[int, int], shift: tuple[float, float]
) -> Image.Image:
    image = Image.new("RGBA", size, (*colour, 255))
    if texture == "plain":
        return image
    # The second colour is a tint of the first, so that a striped red ball is never a striped white one; on white it
    # is grey.
    second = (164, 174, 188) if min(colour) > 200 else tuple(int(0.14 * c + 0.86 * 255) for c in colour)
    width, height = size
    unit = min(size)
    x = np.arange(width)[None, :] / unit + shift[0]
    y = np.arange(height)[:, None] / unit + shift[1]
    mask = Image.fromarray(_PATTERNS[texture](x, y).astype(np.uint8) * 255)
    image.paste((*second, 255), (0, 0), mask)
    return image


def draw_thing(
    picture: Image.Image,
    kind: str,
    colour: tuple[int, int, int],
    texture: str,
    box: tuple[float, float, float, float],
    *,
    tilt: float = 0.0,
    flip: bool = False,
    shift: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Draw one thing, anti-aliased, into a picture.

    Args:
        picture: RGB picture, changed in place.
        kind: a key of `KINDS`.
        colour: RGB colour of the thing's own parts.
        texture: one of `TEXTURES`.
        box: left, top, right, bottom in pixels; the thing fills it.
        tilt: rotation, degrees clockwise.
        flip: mirror left and right.
        shift: offset of the texture, in units of the thing's smaller side.
    """
    left, top = int(box[0]), int(box[1])
    target = np.array([box[0] - left, box[1] - top, box[2] - left, box[3] - top]) * SUPERSAMPLING
    size = (int(np.ceil(target[2] / SUPERSAMPLING)) + 1, int(np.ceil(target[3] / SUPERSAMPLING)) + 1)
    large = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)

    angle = np.radians(tilt)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shapes = [part.points * (-1 if flip else 1, 1) @ turn for part in KINDS[kind].parts]
    corners = np.concatenate(shapes)
    low, span = corners.min(axis=0), np.ptp(corners, axis=0)
    stroke = max(2, round(0.024 * min(large)))
    # The outline is centred on the polygon's edge: half of it must stay inside the box.
    inner = np.array([target[0] + stroke / 2, target[1] + stroke / 2, target[2] - stroke / 2, target[3] - stroke / 2])

    canvas = Image.new("RGBA", large, (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    own = _texture(texture, colour, large, shift)
    for part, shape in zip(KINDS[kind].parts, shapes, strict=True):
        corners = inner[:2] + (shape - low) / span * (inner[2:] - inner[:2])
        path = [tuple(point) for point in corners.tolist()]
        if part.line_width:
            draw.line(path, fill=part.fill, width=max(2, round(part.line_width * large[1])), joint="curve")
            continue
        if part.fill is None:
            mask = Image.new("1", large)
            ImageDraw.Draw(mask).polygon(path, fill=1)
            canvas.paste(own, (0, 0), mask)
        else:
            draw.polygon(path, fill=part.fill)
        draw.line([*path, path[0], path[1]], fill=_INK, width=stroke, joint="curve")

    small = canvas.reduce(SUPERSAMPLING)
    # Light from the upper left, so that plain things look solid rather than cut from paper.
    pixels = np.asarray(small).astype(np.float32)
    slope = np.linspace(0, 1, size[0])[None, :] * 0.45 + np.linspace(0, 1, size[1])[:, None] * 0.55
    pixels[..., :3] *= (1.1 - 0.32 * slope)[..., None]
    shaded = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")
    picture.paste(shaded, (left, top), shaded)


def draw_shadow(picture: Image.Image, box: tuple[float, float, float, float], colour: tuple[int, int, int]) -> None:
    """Draw a soft shadow (or, on water, a ripple) under a thing that stands in `box`, pixels."""
    width = max(8, round((box[2] - box[0]) * 1.2))
    height = max(4, width // 5)
    x = np.linspace(-1, 1, width)[None, :]
    y = np.linspace(-1, 1, height)[:, None]
    alpha = (150 * (1 - x**2 - y**2).clip(0, 1) ** 0.8).astype(np.uint8)
    where = (round((box[0] + box[2] - width) / 2), round(box[3] - 0.55 * height))
    picture.paste(Image.new("RGB", (width, height), colour), where, Image.fromarray(alpha))

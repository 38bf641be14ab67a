"""Generators of hostile images: small files that are large pictures, and files damaged at random."""

import random
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image

# Each is cheap to send and dear to decode: (mode, format, what `save` is told)
BOMBS: dict[str, tuple[str, str, dict]] = {
    "lossless.webp": ("RGB", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
    "alpha.png": ("RGBA", "PNG", {}),
    "grey_alpha.png": ("LA", "PNG", {}),
    "palette.gif": ("P", "GIF", {}),
    "palette.png": ("P", "PNG", {"transparency": 0}),
    "bits.png": ("1", "PNG", {"transparency": 0}),
    "16_bit.png": ("I;16", "PNG", {}),
    "float.tif": ("F", "TIFF", {"compression": "tiff_deflate"}),
    "32_bit.tif": ("I", "TIFF", {"compression": "tiff_deflate"}),
    "turned.png": ("RGB", "PNG", {"turned": True}),
    "turned.tif": ("RGB", "TIFF", {"compression": "tiff_deflate", "turned": True}),
    "colours.tif": ("CMYK", "TIFF", {"compression": "tiff_lzw"}),
    "wavelets.jp2": ("RGB", "JPEG2000", {}),
    "progressive.jpg": ("RGB", "JPEG", {"progressive": True}),
    "pixels.bmp": ("1", "BMP", {}),
}


def peak_kib(pid: int | str = "self") -> int:
    """The most memory that a process has held since it began its program. (`ru_maxrss` also counts its parent's.)"""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def write_bomb(folder: Path, name: str, side: int) -> Path:
    """A file of `BOMBS` of side x side pixels, all alike."""
    mode, kind, options = BOMBS[name]
    options = dict(options)
    if options.pop("turned", False):
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    path = folder / name
    Image.new(mode, (side, side)).save(path, kind, **options)
    return path


def mutated_files(seeds: list[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` files made of good ones: bytes changed, cut off, doubled, swapped between files."""
    draw = random.Random(seed)
    for _ in range(count):
        content = bytearray(draw.choice(seeds))
        for _ in range(draw.choice((1, 1, 2, 8, 64))):
            kind, place = draw.randrange(5), draw.randrange(len(content))
            if kind == 0:
                content[place] = draw.randrange(256)
            elif kind == 1 and len(content) > 20:
                del content[place : place + draw.randrange(1, 200)]
            elif kind == 2:
                content[place:place] = content[place : place + draw.randrange(1, 200)]
            elif kind == 3:
                content[place : place + 4] = draw.randbytes(4)
            else:
                other = draw.choice(seeds)
                start = draw.randrange(len(other))
                content[place : place + 50] = other[start : start + 50]
            if not content:
                content = bytearray(b"\0")
        yield bytes(content)


def good_files() -> list[bytes]:
    """A small picture in each format that can be written, with metadata."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description " * 20
    picture = Image.radial_gradient("L").resize((40, 30))
    files = []
    for mode, kind, options in (
        ("RGB", "JPEG", {"exif": exif}),
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("RGBA", "PNG", {"exif": exif}),
        ("P", "PNG", {"transparency": 0}),
        ("I;16", "PNG", {}),
        ("P", "GIF", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGBA", "WEBP", {"exif": exif}),
        ("RGB", "TIFF", {"compression": "tiff_lzw", "exif": exif}),
        ("F", "TIFF", {}),
        ("RGB", "BMP", {}),
        ("RGB", "PPM", {}),
        ("RGB", "JPEG2000", {}),
        ("RGB", "ICO", {}),
        ("RGB", "AVIF", {}),
    ):
        buffer = BytesIO()
        (
            picture
            if mode == "L"
            else picture.convert("RGB").convert(mode)
            if mode not in ("I;16", "F")
            else picture.convert(mode)
        ).save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files

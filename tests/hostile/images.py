"""Generators of hostile images: small files that are large pictures, and files damaged at random."""

import gzip
import random
import struct
import zlib
from collections.abc import Callable, Iterator
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


def _saved(side: int, mode: str, kind: str) -> bytes:
    buffer = BytesIO()
    Image.new(mode, (side, side)).save(buffer, kind)
    return buffer.getvalue()


def _icon(side: int) -> bytes:
    """A PNG in an icon that says 16 x 16."""
    png = _saved(side, "RGBA", "PNG")
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png


def _icons(side: int) -> bytes:
    """A PNG where a Mac's icon of 128 x 128 belongs."""
    png = _saved(side, "RGBA", "PNG")
    return b"icns" + struct.pack(">I", 16 + len(png)) + b"ic07" + struct.pack(">I", 8 + len(png)) + png


def iptc(content: bytes) -> bytes:
    """Any file in an IPTC record that says 16 x 16."""
    fields = [(3, 60, b"\1\0"), (3, 20, b"\0\x10"), (3, 30, b"\0\x10"), (3, 120, b"\0\5")]
    fields += [(8, 10, content[start : start + 30_000]) for start in range(0, len(content), 30_000)]
    return b"".join(bytes([0x1C, record, tag]) + struct.pack(">H", len(data)) + data for record, tag, data in fields)


def _blizzard(side: int) -> bytes:
    """A JPEG in a texture that says 16 x 16."""
    jpeg = _saved(side, "RGB", "JPEG")
    offsets = struct.pack("<16I", 160, *[0] * 15) + struct.pack("<16I", len(jpeg), *[0] * 15)
    return b"BLP1" + struct.pack("<iIIIii", 0, 0, 16, 16, 4, 0) + offsets + struct.pack("<I", 0) + jpeg


def _stars(side: int) -> bytes:
    """Side x side bytes, compressed, in a table of a telescope that says 16 x 16."""
    cards = ["SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 0", "END"]
    table = ["XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 1", "ZIMAGE  = T"]
    table += ["ZCMPTYPE= 'GZIP_1  '", "ZBITPIX = 8", "ZNAXIS  = 2", "ZNAXIS1 = 16", "ZNAXIS2 = 16", "END"]
    heads = ["".join(card.ljust(80) for card in part).ljust(2880).encode() for part in (cards, table)]
    return b"".join(heads) + b"\0" * 8 + gzip.compress(b"\0" * side**2)


def _tiff(tags: dict[int, tuple[int, int]], bits: tuple[int, ...], content: bytes) -> bytes:
    """A deflated TIFF: tags as type and value, bits per sample."""
    tags = {259: (3, 8), 277: (3, len(bits)), 258: (3, 400), **tags}
    entries = (
        struct.pack("<HHII", tag, kind, len(bits) if tag == 258 else 1, value)
        for tag, (kind, value) in sorted(tags.items())
    )
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return (head.ljust(400, b"\0") + struct.pack(f"<{len(bits)}H", *bits)).ljust(512, b"\0") + content


def _deflated_zeros(count: int) -> bytes:
    deflate = zlib.compressobj()
    parts = [deflate.compress(bytes(min(2**20, count - start))) for start in range(0, count, 2**20)]
    return b"".join(parts) + deflate.flush()


def _tile(side: int) -> bytes:
    """16 x 16 pixels in a tile of side x side."""
    content = _deflated_zeros(4 * side**2)
    sizes = {256: (4, 16), 257: (4, 16), 322: (4, side), 323: (4, side), 324: (4, 512), 325: (4, len(content))}
    return _tiff({**sizes, 262: (3, 2), 338: (3, 2)}, (8, 8, 8, 8), content)


def _strip(side: int) -> bytes:
    """16 bits per value, in one strip."""
    content = _deflated_zeros(8 * side**2)
    sizes = {256: (4, side), 257: (4, side), 278: (4, side), 273: (4, 512), 279: (4, len(content))}
    return _tiff({**sizes, 262: (3, 2), 338: (3, 2)}, (16, 16, 16, 16), content)


def _scans(side: int) -> bytes:
    """A JPEG that is not progressive, and of which each colour has a scan of its own."""
    content = _saved(16, "RGB", "JPEG")
    head, frame = content[: content.index(b"\xff\xda")], content.index(b"\xff\xc0") + 5
    head = head[:frame] + struct.pack(">HH", side, side) + head[frame + 4 :]
    tables = {1: 0, 2: 0x11, 3: 0x11}
    parts = (b"\xff\xda\0\x08" + bytes([1, layer, table, 0, 63, 0]) + bytes(200) for layer, table in tables.items())
    return head + b"".join(parts) + b"\xff\xd9"


def _one_colour(side: int) -> bytes:
    """QOI, of runs of 62 pixels, which Pillow reads in Python."""
    return b"qoif" + struct.pack(">IIBB", side, side, 4, 0) + b"\xfd" * (side**2 // 62 + 1) + b"\0\0\0\0\0\0\0\1"


# Files whose header says less than they take: in formats that are not read, and in formats that are
CONTAINERS: dict[str, Callable[[int], bytes]] = {
    "icon.ico": _icon,
    "icons.icns": _icons,
    "record.jpg": lambda side: iptc(_saved(side, "RGBA", "PNG")),
    "texture.jpg": _blizzard,
    "stars.png": _stars,
}
UNDERSTATED: dict[str, Callable[[int], bytes]] = {
    "tile.tif": _tile,
    "strip.tif": _strip,
    "scans.jpg": _scans,
    "one_colour.qoi": _one_colour,
}


def peak_kib(pid: int | str = "self") -> int:
    """The most memory that a process has held since it began its program. (`ru_maxrss` also counts its parent's.)"""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def write_bomb(folder: Path, name: str, side: int) -> Path:
    """A file of `BOMBS`, `CONTAINERS` or `UNDERSTATED` of side x side pixels, all alike."""
    if make := (CONTAINERS | UNDERSTATED).get(name):
        (folder / name).write_bytes(make(side))
        return folder / name
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
        ("RGB", "PCX", {}),
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

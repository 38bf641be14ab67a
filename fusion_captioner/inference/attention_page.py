"""Pictures with their captions and, for every word, where the captioner looked: as one HTML page and as one PNG."""

from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fusion_captioner.evaluation.html_page import jpeg_uri, render, shrunk
from fusion_captioner.inference.attention_maps import AttendedCaption

PICTURE_SIDE = 300  # pixels, the longer side
TILE_SIDE = 132
TILES_A_ROW = 7
MARGIN, GAP = 16, 8
TITLE_HEIGHT, LABEL_HEIGHT = 36, 24
# How bright a region stays where nothing was looked at.
DARKEST = 0.2

STYLE = """\
h2 { margin: 0 0 .75rem; overflow-wrap: anywhere; }
p { margin: 0 0 1rem; max-width: 48rem; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; margin: 0 0 1rem; }
.picture { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.picture > img { max-width: 100%; height: auto; border-radius: .25rem; }
ol { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .5rem; flex: 1 1 20rem; }
li { width: 8.25rem; }
li img { display: block; max-width: 100%; height: auto; border-radius: .25rem; }
li span { display: block; font-size: .95rem; overflow-wrap: anywhere; }
section .soft { margin: .5rem 0 0; }
@media print { section { break-inside: avoid; } }
"""


def lit(picture: Image.Image, attention: np.ndarray) -> Image.Image:
    """
    The picture, bright where the weights are high and dark where they are low.

    Args:
        picture: RGB.
        attention (`np.ndarray` of shape `(h, w)`): the highest weight is shown at full brightness.
    """
    peak = max(float(attention.max()), 1e-12)
    weights = Image.fromarray((attention / peak).astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    brightness = DARKEST + (1 - DARKEST) * np.asarray(weights).clip(0, 1)
    return Image.fromarray((np.asarray(picture) * brightness[..., None]).astype(np.uint8))


def render_page(
    title: str, note: str, names: Sequence[str], pictures: Sequence[Image.Image], captions: Sequence[AttendedCaption]
) -> str:
    """
    The HTML page.

    Args:
        title: its heading.
        note: what is said below it, as plain text.
        names: of the pictures.
        pictures, captions: one of each a name.
    """
    sections = "\n".join(
        _section(name, picture, caption) for name, picture, caption in zip(names, pictures, captions, strict=True)
    )
    told = (
        "<p>Under each picture's caption, its words: the picture is bright where the captioner looked while it wrote the "
        f"word. {escape(note)}</p>"
    )
    return render(title, title, STYLE, f"{told}\n{sections}")


def _section(name: str, picture: Image.Image, caption: AttendedCaption) -> str:
    tile = shrunk(picture, TILE_SIDE)
    words = "".join(
        f'<li><img src="{jpeg_uri(lit(tile, attention))}" alt="" width="{tile.width}" height="{tile.height}">'
        f'<span dir="auto">{escape(word)}</span></li>'
        for word, attention in zip(caption.words, caption.maps, strict=True)
    )
    large = shrunk(picture, PICTURE_SIDE)
    return f"""\
<section>
<h2 dir="auto">{escape(caption.text) or "(nothing)"}</h2>
<div class="picture">
<img src="{jpeg_uri(large)}" alt="{escape(name)}" width="{large.width}" height="{large.height}">
<ol>{words}</ol>
</div>
<p class="soft">{escape(name)}</p>
</section>"""


def draw_sheet(pictures: Sequence[Image.Image], captions: Sequence[AttendedCaption]) -> Image.Image:
    """
    The same as one image: each picture with its caption above it and its words beside it.

    Args:
        pictures, captions: one caption a picture.
    """
    font, small = ImageFont.load_default(22), ImageFont.load_default(15)
    larges, tiles = ([shrunk(picture, side) for picture in pictures] for side in (PICTURE_SIDE, TILE_SIDE))
    steps = [tile.height + LABEL_HEIGHT for tile in tiles]
    heights = [
        TITLE_HEIGHT + max(large.height, -(-len(caption.words) // TILES_A_ROW) * step) + 2 * MARGIN
        for large, step, caption in zip(larges, steps, captions, strict=True)
    ]
    width = 2 * MARGIN + PICTURE_SIDE + TILES_A_ROW * (TILE_SIDE + GAP) + MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for large, tile, step, caption, height in zip(larges, tiles, steps, captions, heights, strict=True):
        draw.text((MARGIN, top), caption.text, fill="black", font=font)
        sheet.paste(large, (MARGIN, top + TITLE_HEIGHT))
        for number, (word, attention) in enumerate(zip(caption.words, caption.maps, strict=True)):
            row, column = divmod(number, TILES_A_ROW)
            left = 2 * MARGIN + PICTURE_SIDE + column * (TILE_SIDE + GAP)
            upper = top + TITLE_HEIGHT + row * step
            sheet.paste(lit(tile, attention), (left, upper))
            draw.text((left, upper + tile.height + 1), word, fill="black", font=small)
        top += height
    return sheet

"""Pictures with their captions and the map of every word: as one HTML page and as one PNG."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fusion_captioner.evaluation.html_page import jpeg_uri, render, shrunk
from fusion_captioner.inference.attention_maps import ExplainedCaption

PICTURE_SIDE = 300  # pixels, the longer side
TILE_SIDE = 132
TILES_PER_ROW = 7
MARGIN, GAP = 16, 8
TITLE_HEIGHT, LABEL_HEIGHT = 36, 24
# How bright a place stays that has nothing to do with the word.
DARKEST = 0.2


def lit(picture: Image.Image, caption: ExplainedCaption, word: int) -> Image.Image:
    """
    The picture, bright where the map of a word is high and dark where it is low.

    Args:
        picture: the caption's photo, RGB, of any size.
        caption, word: the caption, and the place of the word in it.
    """
    weights = caption.photo_map(word, (picture.height, picture.width))
    brightness = DARKEST + (1 - DARKEST) * weights / weights.max()
    return Image.fromarray((np.asarray(picture) * brightness[..., None]).astype(np.uint8))


def render_page(
    title: str, note: str, names: Sequence[str], pictures: Sequence[Image.Image], captions: Sequence[ExplainedCaption]
) -> str:
    """
    The HTML page.

    Args:
        title: its heading.
        note: the text below it.
        names: of the pictures.
        pictures, captions: one of each per name.
    """
    return render(
        "inference/attention_page.html",
        title=title,
        heading=title,
        note=note,
        pictures=[
            _values(name, picture, caption) for name, picture, caption in zip(names, pictures, captions, strict=True)
        ],
    )


def _values(name: str, picture: Image.Image, caption: ExplainedCaption) -> dict[str, Any]:
    tile = shrunk(picture, TILE_SIDE)
    words = [(word, _embedded(lit(tile, caption, place))) for place, word in enumerate(caption.words)]
    return {
        "name": name,
        "caption": caption.text,
        "large": _embedded(shrunk(picture, PICTURE_SIDE)),
        "words": words,
    }


def _embedded(picture: Image.Image) -> dict[str, Any]:
    return {"uri": jpeg_uri(picture), "width": picture.width, "height": picture.height}


def draw_sheet(pictures: Sequence[Image.Image], captions: Sequence[ExplainedCaption]) -> Image.Image:
    """
    The same as one image: each picture with its caption above it and its words to the right.

    Args:
        pictures, captions: one caption per picture.
    """
    font, small = ImageFont.load_default(22), ImageFont.load_default(15)
    larges, tiles = ([shrunk(picture, side) for picture in pictures] for side in (PICTURE_SIDE, TILE_SIDE))
    steps = [tile.height + LABEL_HEIGHT for tile in tiles]
    heights = [
        TITLE_HEIGHT + max(large.height, -(-len(caption.words) // TILES_PER_ROW) * step) + 2 * MARGIN
        for large, step, caption in zip(larges, steps, captions, strict=True)
    ]
    width = 2 * MARGIN + PICTURE_SIDE + TILES_PER_ROW * (TILE_SIDE + GAP) + MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for large, tile, step, caption, height in zip(larges, tiles, steps, captions, heights, strict=True):
        draw.text((MARGIN, top), caption.text, fill="black", font=font)
        sheet.paste(large, (MARGIN, top + TITLE_HEIGHT))
        for number, word in enumerate(caption.words):
            row, column = divmod(number, TILES_PER_ROW)
            left = 2 * MARGIN + PICTURE_SIDE + column * (TILE_SIDE + GAP)
            upper = top + TITLE_HEIGHT + row * step
            sheet.paste(lit(tile, caption, number), (left, upper))
            draw.text((left, upper + tile.height + 1), word, fill="black", font=small)
        top += height
    return sheet

"""Augmentation of training images: the same picture, mirrored, cropped or in other light, with captions that stay
true."""

import re
from collections.abc import Callable, Sequence
from random import Random

from PIL import Image, ImageEnhance

Augmented = tuple[Image.Image, list[str]]

# Sides in English, German (links, linke, linken, ...) and Chinese.
_PAIRS = (("left", "right"), ("link", "recht"), ("左", "右"))
_SIDES = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}
_SIDE = re.compile(r"\b(left|right)\b|\b(?:link|recht)(?=(?:s|e[nrsm]?)\b)|左|右", re.IGNORECASE)
# What is written on a picture is not written there any more when it is mirrored.
_WRITING = re.compile(
    r"\b(words?|letters?|text|writing|written|reads?|says?|numbers?|numbered)\b"
    r"|\b(buchstaben?|schrift|schriftzug|aufschrift|geschrieben|nummern?|zahl(en)?)\b|字|写|号码|数字",
    re.IGNORECASE,
)


def _swap_side(match: re.Match[str]) -> str:
    word = match.group()
    swapped = _SIDES[word.lower()]
    return swapped.capitalize() if word[0].isupper() else swapped


def flip(picture: Image.Image, captions: list[str], draw: Random) -> Augmented:
    """Mirrored, every other time; "left" and "right" change places in the captions. A picture whose captions speak of
    writing stays as it is."""
    if not draws_flip(captions, draw):
        return picture, captions
    return mirror(picture), swap_sides(captions)


def draws_flip(captions: Sequence[str], draw: Random) -> bool:
    """Whether [`flip`] mirrors the picture."""
    return draw.random() >= 0.5 and not any(_WRITING.search(caption) for caption in captions)


def mirror(picture: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def swap_sides(captions: Sequence[str]) -> list[str]:
    """The captions of the mirrored picture."""
    return [_SIDE.sub(_swap_side, caption) for caption in captions]


def crop(picture: Image.Image, captions: list[str], draw: Random) -> Augmented:
    """A part of four fifths to all of the width and of the height: so much that captions stay true."""
    width, height = picture.size
    new_width, new_height = (max(1, round(side * draw.uniform(0.8, 1))) for side in (width, height))
    left, top = draw.randint(0, width - new_width), draw.randint(0, height - new_height)
    return picture.crop((left, top, left + new_width, top + new_height)), captions


def colour(picture: Image.Image, captions: list[str], draw: Random) -> Augmented:
    """Brightness, contrast and saturation changed by up to a fifth; hues stay, for captions name colours."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(draw.uniform(0.8, 1.2))
    return picture, captions


AUGMENTATIONS: dict[str, Callable[[Image.Image, list[str], Random], Augmented]] = {
    "flip": flip,
    "crop": crop,
    "colour": colour,
}


def augment(picture: Image.Image, captions: Sequence[str], names: Sequence[str], seed: str) -> Augmented:
    """
    The picture and its captions after each augmentation in turn.

    Args:
        picture: RGB.
        captions: of this row.
        names: keys of `AUGMENTATIONS`.
        seed: what is drawn is a function of it alone, so that a resumed run sees what an unbroken one sees.
    """
    draw, changed = Random(seed), list(captions)
    for name in names:
        picture, changed = AUGMENTATIONS[name](picture, changed, draw)
    return picture, changed

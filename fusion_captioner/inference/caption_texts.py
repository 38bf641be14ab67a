"""Captions as they are wanted: with words in front and behind, and no longer than a limit."""

from functools import cache
from typing import Any

# What follows a word without a space
_CLOSING = ",.;:!?)]}、，。；：！？）」』》"
# What no text ends with
_LEFT_OPEN = " ,;:-–—([{“‘、，；：（「『《"


def framed(text: str, prefix: str = "", suffix: str = "") -> str:
    """
    `text` between `prefix` and `suffix`, with a space where two words would meet: `ohwx` + `a dog` is `ohwx a dog`,
    and `a dog` + `, photo` is `a dog, photo`.
    """
    if prefix and text and not prefix[-1].isspace():
        prefix += " "
    if suffix and (prefix or text) and not suffix[0].isspace() and suffix[0] not in _CLOSING:
        suffix = f" {suffix}"
    return f"{prefix}{text}{suffix}".strip()


def shortened(text: str, max_chars: int) -> str:
    """
    The beginning of `text` that has at most `max_chars` characters and ends with a whole word, or, in scripts without
    spaces, with a whole character and its marks. Empty, if the first word is longer. An English article or preposition
    whose noun was cut off goes, too: `a dog on the` is `a dog`, and of `a dog` an `a` alone does not stay.
    """
    if len(text) <= max_chars:
        return text
    end = 0
    for piece in _piece().finditer(text):
        if piece.end() > max_chars:
            break
        end = piece.end()
    short = text[:end].rstrip(_LEFT_OPEN)
    while short and (last := short.rpartition(" ")[2]).lower() in _open_words():
        short = short.removesuffix(last).rstrip(_LEFT_OPEN)
    return short


@cache
def _open_words() -> frozenset[str]:
    from fusion_captioner.metrics.diversity import FUNCTION_WORDS

    # a whole caption may end in these, and one that is cut there rarely does
    return FUNCTION_WORDS | {"on", "by", "over", "behind", "around", "along"}


@cache
def _piece() -> Any:
    """The smallest pieces that may stay: a word with its punctuation, or a character where no spaces are written."""
    # a cold start would wait for them, and most captions are not cut
    import regex

    from fusion_captioner.metrics.tokenization import SPACELESS_SCRIPTS

    return regex.compile(rf"(?=[{SPACELESS_SCRIPTS}])\X|(?:(?![{SPACELESS_SCRIPTS}])\S)+|\s+")

"""Checks of values that users give in flags, requests and settings. Nothing heavy is imported here."""

# Lengths of thousands of tokens to this power are float32 numbers, and to its negative not 0.
MAX_LENGTH_PENALTY = 10


def check_text(text: str, name: str) -> None:
    """
    Make sure that `text` can be written in UTF-8, as tokenizers and responses need it. Python reads a byte of an
    argument that is no UTF-8 as a lone surrogate, and JSON may name one.

    Raises:
        ValueError: it has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise ValueError(f"{name} ({around!r}) is not UTF-8; give it in UTF-8.") from error


def check_length_penalty(penalty: float, name: str) -> None:
    """
    Raises:
        ValueError: scores cannot be divided by a length to this power.
    """
    if not -MAX_LENGTH_PENALTY <= penalty <= MAX_LENGTH_PENALTY:
        raise ValueError(f"{name} ({penalty}) must be -{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY}, such as 1.")

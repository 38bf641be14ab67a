"""Checks of values that users give in flags, requests and settings. Nothing heavy is imported here."""

# Lengths of thousands of tokens to this power are float32 numbers, and to its negative not 0.
MAX_LENGTH_PENALTY = 10


# Logits divided by less are too large for float32, and divided by this they are greedy already.
MIN_TEMPERATURE = 1e-6
# Scores of words are multiplied and divided by it.
MAX_REPETITION_PENALTY = 100
# Tokens of a text, which take memory before the first is written.
MAX_NEW_TOKENS = 100_000


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


def check_temperature(temperature: float, name: str) -> None:
    """
    Raises:
        ValueError: scores cannot be divided by it.
    """
    if not MIN_TEMPERATURE <= temperature < float("inf"):
        raise ValueError(f"{name} ({temperature}) must be at least {MIN_TEMPERATURE}, such as 0.7.")


def check_repetition_penalty(penalty: float, name: str) -> None:
    """
    Raises:
        ValueError: it would leave nothing of what the captioner knows.
    """
    if not 1 / MAX_REPETITION_PENALTY <= penalty <= MAX_REPETITION_PENALTY:
        raise ValueError(
            f"{name} ({penalty}) must be {1 / MAX_REPETITION_PENALTY} to {MAX_REPETITION_PENALTY}, such as 1.2."
        )


def check_new_tokens(tokens: int, name: str) -> None:
    """
    Raises:
        ValueError: no text has so few or so many tokens.
    """
    if not 1 <= tokens <= MAX_NEW_TOKENS:
        raise ValueError(f"{name} ({tokens}) must be 1 to {MAX_NEW_TOKENS}.")


def check_seed(seed: int, name: str) -> None:
    """
    Raises:
        ValueError: NumPy or torch does not take it.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"{name} ({seed}) must be 0 to {2**63 - 1}.")

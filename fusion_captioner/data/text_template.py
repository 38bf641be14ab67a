"""The text of a row out of its fields: one of them, or pieces with fields in braces; words that it must not tell."""

import re
from collections.abc import Sequence
from string import Formatter

from fusion_captioner.data.folder_rows import FolderRow

HIDDEN = "..."


class TextTemplate:
    """
    Pieces of text such as `"age {age}."`, joined by blanks; a piece is left out where one of its fields is empty.

    Args:
        pieces: the texts; a field is a plain name in braces, a brace itself is doubled.
        hidden_words: words that are replaced by `...` in what comes out, whatever their case; only where they stand
            alone, so that "cold" stays in "scolded".

    Raises:
        ValueError: a piece that is no template, or that asks for more than plain fields.
    """

    def __init__(self, pieces: Sequence[str], hidden_words: Sequence[str] = ()) -> None:
        self.pieces = [(piece, _fields(piece)) for piece in pieces]
        words = "|".join(re.escape(word) for word in sorted(hidden_words, key=len, reverse=True))
        self.hidden = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None

    def __call__(self, row: FolderRow) -> str:
        """The text of a row, which may be empty.

        Raises:
            ValueError: the row lacks a field, or it holds no text.
        """
        texts = []
        for piece, fields in self.pieces:
            values = {field: row.text(field) for field in fields}
            if all(values.values()):
                texts.append(piece.format_map(values))
        text = " ".join(texts)
        return text if self.hidden is None else self.hidden.sub(HIDDEN, text)


def _fields(piece: str) -> list[str]:
    try:
        parts = list(Formatter().parse(piece))
    except ValueError as error:
        raise ValueError(
            f"{piece!r} in `text_template` is no template ({error}); double the braces of text."
        ) from None
    fields = [field for _, field, _, _ in parts if field is not None]
    for _, field, form, conversion in parts:
        if field is not None and (not field.isidentifier() or form or conversion):
            raise ValueError(
                f"{piece!r} in `text_template` has the field {field!r}; write plain names, such as {{age}}."
            )
    return fields

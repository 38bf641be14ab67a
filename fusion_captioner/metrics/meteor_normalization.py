"""What METEOR 1.5's `-norm` and its function-word list do to the tokens of a caption, so that both count the same
words.

The rules are those of the METEOR and Moses tokenizers as far as they touch text that is tokenized already. Only Moses'
list of abbreviations is left out: of its entries `v.`, `vs.` and `rev.` can meet a lower-cased caption, at its end.
"""

import re
from collections.abc import Hashable, Iterable

# Letters to METEOR are Latin and Cyrillic; every other letter is a symbol that stands alone.
_LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"

_RULES = [
    (re.compile(pattern, re.ASCII), replacement)
    for pattern, replacement in [
        (rf"([^0-9{_LETTER}\s.'`,\-‘’])", r" \1 "),  # symbols stand alone
        (r"\.{2,}", r" \g<0> "),  # so does an ellipsis
        (r"[`‘’]", "'"),  # one kind of quotation mark and of dash
        (r"[“”]|''", ' " '),
        (r"–|--", "-"),
        (rf"([0-9{_LETTER}.])-([0-9{_LETTER}])", r"\1 \2"),  # black-and-white → black and white
        (rf"([^{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),  # apostrophes: kids' → kids ', dog's → dog 's
        (rf"([^0-9{_LETTER}])'([{_LETTER}])", r"\1 ' \2"),
        (rf"([{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),
        (rf"([{_LETTER}])'([{_LETTER}])", r"\1 '\2"),
        (r"([0-9])'(s)", r"\1 '\2"),  # 1990's
    ]
]
_PLAIN = re.compile(r"[0-9a-z ]*")

# METEOR 1.5's English function words (`function/english.words` in its jar, Carnegie Mellon University, LGPL): the
# words and marks with a relative frequency above 10⁻³ in a large corpus (Denkowski & Lavie 2014).
FUNCTION_WORDS = frozenset(
    """
    the , . to of and a in that for " is on 's it with was as said at he by be from have has are his but an this
    not i will ’ they ) -rrb- ( -lrb- who their had we which were been more or s its would about new one after
    you : also up when there than $ all out her people she year two - can if last first “ over other ” into some
    what so -- no time years could ? 't — '
    """.split()  # noqa: SIM905
)


def normalize_tokens(tokens: Iterable[Hashable]) -> list[str]:
    """Splits and lower-cases the tokens of a caption as METEOR does before it matches words.

    Raises:
        ValueError: if a token is not a string: METEOR looks at letters.
    """
    text = " ".join(_as_word(token) for token in tokens)
    if _PLAIN.fullmatch(text):  # 98 of 100 captions
        return text.split()
    text = f" {text} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    words = text.split()
    return [
        part.lower() for word, following in zip(words, [*words[1:], ""]) for part in _split_full_stop(word, following)
    ]


def _as_word(token: Hashable) -> str:
    if not isinstance(token, str):
        raise ValueError(f"token {token!r} is a {type(token).__name__}: METEOR needs words, not token ids.")
    return token


def _split_full_stop(word: str, following: str) -> list[str]:
    """u.s. → us; st. stays before a lower-case word, as an abbreviation does, and is split before anything else."""
    stem = word[:-1]
    if not word.endswith(".") or not word.strip("."):
        return [word]
    if "." in stem and re.search(f"[{_LETTER}]", stem):
        return [word.replace(".", "")]
    return [word] if re.match("[a-z]", following) else [stem, "."]

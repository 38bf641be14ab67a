"""Words that captions must not have, as the sequences of tokens that spell them."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice, product

import regex
from tokenizers import Tokenizer

from fusion_captioner.metrics.tokenization import SPACELESS_SCRIPTS

# Tokenizers write the space in front of a word as one of these.
SPACES = ("Ġ", "▁")
# Spellings per word that are forbidden, those of the fewest pieces first; most words have fewer.
MAX_SPELLINGS = 2000

_SPACELESS = regex.compile(f"[{SPACELESS_SCRIPTS}]")


def bad_words_ids(tokenizer: Tokenizer, words: Sequence[str], before: int | None) -> list[list[int]]:
    """
    The token sequences that spell `words`, as `bad_words_ids` of transformers' `generate`.

    A captioner whose usual token of a word is forbidden may spell it in smaller pieces; these are forbidden, too. A
    word is forbidden in lower and upper case and with a capital, and also as the beginning of a longer word that has
    no token of its own.

    Args:
        tokenizer: the captioner's.
        words: words or phrases.
        before: the token in front of the first word: BOS, or the token of a language.

    Returns:
        the sequences; none where the tokenizer cannot write the words.

    Raises:
        ValueError: a word is empty or a special token.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        if not word.strip():
            raise ValueError(
                f"--bad-words ({word!r}) has an empty word; name words, such as: --bad-words blurry photo"
            )
        for variant in dict.fromkeys((word, word.lower(), word.upper(), word.capitalize())):
            for sequence in islice(_spellings(tokenizer, variant.strip(), before), MAX_SPELLINGS):
                found[sequence] = None
    return [list(sequence) for sequence in found]


def _spellings(tokenizer: Tokenizer, word: str, before: int | None) -> Iterator[tuple[int, ...]]:
    special = {each.content for each in tokenizer.get_added_tokens_decoder().values() if each.special}
    if word in special:
        raise ValueError(f"--bad-words ({word}) is a special token of the captioner; leave it out.")
    kind = type(tokenizer.model).__name__
    unwritable = special | {getattr(tokenizer.model, "unk_token", None)}
    expected = _letters(word if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(word))
    has_spaces = _SPACELESS.search(word) is None
    for text in (f" {word}", word):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        is_writable = encoding.tokens and not unwritable.intersection(encoding.tokens)
        if not is_writable or _letters(tokenizer.decode(encoding.ids)) != expected:
            continue  # it has characters that captions cannot have
        groups = groupby(zip(encoding.word_ids, encoding.tokens), key=lambda pair: pair[0])
        parts = [[token for _, token in group] for _, group in groups]
        if kind not in ("BPE", "Unigram"):
            yield from _spelled(tokenizer, parts)
            continue
        parts = [["".join(part)] for part in parts]
        if parts[0][0].startswith(SPACES):
            yield from _spelled(tokenizer, parts)
            parts[0][0] = parts[0][0][1:]
        if not parts[0][0]:
            continue
        # without a space in front it is a word where no spaces are written, and at the beginning of a text
        start = (before,) if has_spaces and before is not None else ()
        yield from ((*start, *sequence) for sequence in _spelled(tokenizer, parts, not has_spaces))


def _letters(text: str) -> str:
    return "".join(text.split())


def _spelled(tokenizer: Tokenizer, parts: list[list[str]], inside: bool = False) -> Iterator[tuple[int, ...]]:
    """
    The sequences of tokens that give the same text as the tokens of `parts`, word by word; with `inside`, also those
    that have more in front of the text or behind it.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    inner = getattr(tokenizer.model, "continuing_subword_prefix", None) or ""
    choices = []
    for first, *others in parts:
        text = first + "".join(token.removeprefix(inner) for token in others)
        choices.append(list(islice(_segmentations(text, vocabulary, inner, inside), MAX_SPELLINGS)))
    for chosen in product(*choices):
        yield tuple(token for sequence in chosen for token in sequence)


def _segmentations(text: str, vocabulary: dict[str, int], inner: str, inside: bool) -> Iterator[tuple[int, ...]]:
    """
    Every way to write `text` with entries of a vocabulary, fewest entries first; `inner` begins those behind the
    first. With `inside`, the first entry may end with its part of the text, and the last one begin with it.
    """
    length = len(text)
    # entries that lie at each place: where they end, and their numbers
    entries: list[list[tuple[int, int]]] = [
        [
            (end, vocabulary[piece])
            for end in range(length, start, -1)
            if (piece := (inner if start else "") + text[start:end]) in vocabulary
        ]
        for start in range(length)
    ]
    if inside:
        yield from ((number,) for entry, number in vocabulary.items() if text in entry and entry != text)
        for entry, number in vocabulary.items():
            ends = [end for end in range(1, length) if entry.endswith(text[:end]) and entry != text[:end]]
            entries[0] += [(end, number) for end in ends]
            for start in range(1, length):
                if entry.startswith(text[start:]) and entry != text[start:]:
                    entries[start].append((length, number))
    # whether the rest from a place on can be written with so many entries
    fits = [[place == length for place in range(length + 1)]]
    for _ in range(length):
        fits.append([any(fits[-1][end] for end, _ in entries[place]) for place in range(length)] + [False])

    def written(place: int, number: int) -> Iterator[tuple[int, ...]]:
        if place == length:
            yield ()
            return
        for end, entry in entries[place]:
            if fits[number - 1][end]:
                yield from ((entry, *rest) for rest in written(end, number - 1))

    for number in range(1, length + 1):
        if fits[number][0]:
            yield from written(0, number)

"""Which words of the training captions are concepts: those that images are searched for."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

MAX_CONCEPTS = 1500
# How much likelier a word is in a caption where another of the same image has it. Chance is 1: function words of
# English, German and Chinese are below 4 (`a` 1.0, `mit` 1.5, `with` 1.6, `of` 2.0, `as` 2.9), content words above.
MIN_LIFT = 5.0
# A word of every fifth caption can have no lift of 5; captions that agree on it (Cohen's kappa) tell it from `a`.
MIN_KAPPA, MIN_LIFT_OF_FREQUENT = 0.3, 2.5


def choose_concepts(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    min_images: int = 25,
    languages: Sequence[str] = (),
) -> list[int] | list[list[int]]:
    """
    The tokens that are whole words on which the captions of an image agree, the `MAX_CONCEPTS` most frequent of them.

    A word that an image calls for is in several of its captions, a function word is in any caption. So no list of
    function words is needed, in no language.

    Args:
        rows: `captions` of each image and, with `languages`, `languages` of each caption; those without it are in the
            first.
        tokenizer: a fast one.
        min_images: images that have the word in a caption.
        languages: codes, if there are several.

    Returns:
        `concept_token_ids` of the config.

    Raises:
        ValueError: no word is a concept, as where each image has one caption.
    """
    names = list(languages) or [""]
    texts: dict[str, list[str]] = {name: [] for name in names}
    counts: dict[str, list[int]] = {name: [] for name in names}  # captions of each image
    for row in rows:
        spoken = row.get("languages", [names[0]] * len(row["captions"]))
        for name in names:
            own = [text for text, language in zip(row["captions"], spoken, strict=True) if language == name]
            texts[name] += own
            counts[name].append(len(own))
    found = {
        (name, token): images
        for name in names
        for token, images in _agreed_words(texts[name], counts[name], tokenizer, min_images).items()
    }
    if not found:
        raise ValueError(
            f"no word of the training captions is a concept: none is in {min_images} images "
            "(`data.concept_min_images`) and in several captions of an image; lower it, or set "
            "`model.config.concept_token_ids`."
        )
    best = sorted(found, key=lambda key: (-found[key], key))[:MAX_CONCEPTS]
    lists = [sorted(token for name, token in best if name == wanted) for wanted in names]
    return lists if languages else lists[0]


def _agreed_words(
    texts: list[str], counts: list[int], tokenizer: PreTrainedTokenizerBase, min_images: int
) -> dict[int, int]:
    """Concepts of one language, and the images that have them."""
    if not texts:
        return {}
    encodings = tokenizer(texts, add_special_tokens=False, verbose=False).encodings
    in_images, in_captions, agreeing, possible = Counter[int](), Counter[int](), Counter[int](), Counter[int]()
    first = 0
    for count in counts:
        words = Counter(token for encoding in encodings[first : first + count] for token in _whole_words(encoding))
        first += count
        in_images.update(words.keys())
        in_captions.update(words)
        for token, captions in words.items():
            agreeing[token] += captions * (captions - 1)
            possible[token] += captions * (count - 1)
    concepts = {}
    for token, images in in_images.items():
        if images < min_images or not any(map(str.isalpha, tokenizer.decode([token]))):
            continue
        share, agreement = in_captions[token] / len(texts), agreeing[token] / max(possible[token], 1)
        lift, kappa = agreement / share, (agreement - share) / max(1 - share, 1e-9)
        if lift >= MIN_LIFT or (kappa >= MIN_KAPPA and lift >= MIN_LIFT_OF_FREQUENT):
            concepts[token] = images
    return concepts


def _whole_words(encoding: Any) -> set[int]:
    """Tokens that are a word by themselves, not a piece of one."""
    pieces = Counter(encoding.word_ids)
    marked = zip(encoding.ids, encoding.word_ids, encoding.special_tokens_mask)
    return {token for token, word, special in marked if word is not None and pieces[word] == 1 and not special}

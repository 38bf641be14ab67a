"""Concepts are the words on which the captions of an image agree, whatever their language."""

import pytest

from fusion_captioner.data.concept_words import choose_concepts
from fusion_captioner.data.tokenizer_training import train_tokenizer

THINGS = ["dog", "cat", "bird", "horse", "boat", "train", "tree", "ball"]
ZH = dict(zip(THINGS, "狗猫鸟马船车树球", strict=True))
# what captions of any image may have or not
FILLERS = ["a", "near", "with some", "3", "unphotographable"]


def english(thing: str, number: int) -> list[str]:
    """Three captions that agree on the thing, with words that come and go."""
    return [f"{FILLERS[(number + place) % 5]} {thing} {FILLERS[(3 * number + place) % 4]} ." for place in range(3)]


def image(thing: str, number: int) -> dict[str, list[str]]:
    chinese = [f"{'的一'[(number + place) % 2]}{ZH[thing]}" for place in range(2)]
    return {"captions": [*english(thing, number), *chinese], "languages": ["en"] * 3 + ["zh"] * 2}


ROWS = [image(thing, number) for number in range(10) for thing in THINGS]
ENGLISH = [{"captions": row["captions"][:3]} for row in ROWS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text for row in ROWS for text in row["captions"]], languages=["en", "zh"], vocab_size=200)


def words(tokenizer, ids: list[int]) -> set[str]:
    assert ids == sorted(set(ids))
    return set(tokenizer.convert_ids_to_tokens(ids))


def test_captions_agree_on_things_and_not_on_function_words(tokenizer) -> None:
    assert words(tokenizer, choose_concepts(ENGLISH, tokenizer, min_images=10)) == set(THINGS)


def test_a_frequent_thing_is_a_concept_and_a_word_of_any_caption_is_none(tokenizer) -> None:
    frequent = [row for number, row in enumerate(ENGLISH) if number % 8 == 0] * 3 + ENGLISH
    assert words(tokenizer, choose_concepts(frequent, tokenizer, min_images=10)) == set(THINGS)
    everywhere = [{"captions": [f"{text} a" for text in row["captions"]]} for row in ENGLISH]
    assert "a" not in words(tokenizer, choose_concepts(everywhere, tokenizer, min_images=10))


def test_a_concept_is_in_enough_images(tokenizer) -> None:
    rows = [*ENGLISH, *({"captions": english("tree", number)} for number in range(2))]
    assert words(tokenizer, choose_concepts(rows, tokenizer, min_images=11)) == {"tree"}
    with pytest.raises(ValueError, match=r"13 images \(`data.concept_min_images`\)"):
        choose_concepts(rows, tokenizer, min_images=13)


def test_pieces_of_words_are_no_concepts(tokenizer) -> None:
    rows = [{"captions": english("dogcat" if thing == "dog" else thing, n)} for n in range(10) for thing in THINGS]
    assert tokenizer.tokenize("dogcat")[0] == "dog"
    assert words(tokenizer, choose_concepts(rows, tokenizer, min_images=10)) == {*THINGS} - {"dog"}


def test_each_language_has_concepts_of_its_own(tokenizer) -> None:
    en, zh = choose_concepts(ROWS, tokenizer, 10, ["en", "zh"])
    assert words(tokenizer, en) == set(THINGS) and words(tokenizer, zh) == set(ZH.values())


def test_one_caption_per_image_shows_no_agreement(tokenizer) -> None:
    with pytest.raises(ValueError, match="several captions of an image"):
        choose_concepts([{"captions": row["captions"][:1]} for row in ROWS], tokenizer, 2)

import pytest

from fusion_captioner.metrics.tokenization import (
    to_tokens,
    tokenize_caption,
    tokenize_corpus,
    tokenize_references,
    tokenize_words,
    tokenizer_name,
)


def test_punctuation_goes_and_hyphens_and_apostrophes_stay():
    assert tokenize_caption("A well-dressed man's dog at 5 o'clock, running (fast)!") == (
        ["a", "well-dressed", "man", "'s", "dog", "at", "5", "o'clock", "running", "fast"]
    )
    assert tokenize_caption(" . , ' - --") == []


# As the Penn Treebank tokenizer of pycocoevalcap splits them
CONTRACTIONS = {
    "a man 's dog": "a man 's dog",
    "He doesn't. They'll": "he does n't they 'll",
    "he does n't , I 'm": "he does n't i 'm",
    "the boys ' 'stop' sign": "the boys stop sign",
    "couldn't've, it's's": "could n't 've it 's 's",
    "a man\N{RIGHT SINGLE QUOTATION MARK}s caf\N{LATIN SMALL LETTER E WITH ACUTE}'s": "a man 's caf\xe9 's",
    "isn't-it t-shirt's 1980's": "is n't it t-shirt 's 1980 's",
    "l'homme d'un y'know c'mon": "l'homme d'un y'know c'mon",
    "'s n't": "'s n't",
}


@pytest.mark.parametrize("caption", CONTRACTIONS)
def test_contractions_are_words_of_their_own(caption: str):
    assert tokenize_caption(caption) == CONTRACTIONS[caption].split()
    assert tokenize_words(caption) == CONTRACTIONS[caption].split()


def test_letters_of_other_scripts_are_words():
    assert tokenize_caption("Ein Hund läuft. Собака бежит.") == ["ein", "hund", "läuft", "собака", "бежит"]


def test_a_callable_or_ready_tokens_replace_the_tokenizer():
    assert tokenize_corpus(["A.b"], [["A.b c"]], tokenizer=str.split) == ([["A.b"]], [[["A.b", "c"]]])
    assert tokenize_corpus([[3, 4]], [[[3, 5]]], tokenizer=None) == ([[3, 4]], [[[3, 5]]])


def test_names_tell_tokenizers_apart():
    assert len({tokenizer_name(tokenizer) for tokenizer in (tokenize_caption, str.split, None)}) == 3


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "1 captions and `references` has 2"),
        ([], [], "`references` is empty"),
        (["a", "b"], [["a"], []], r"`references\[1\]` is empty"),
        (["a"], ["a dog"], r"`references\[0\]` is 'a dog'"),
        ("a", [["a"]], "`predictions` is one string"),
        ([None], [["a"]], r"`predictions\[0\]` is None of type NoneType"),
        (["a"], [["a", 7]], r"`references\[0\]\[1\]` is 7 of type int"),
        ([["a"]], [["a"]], "Pass `tokenizer=None`"),
    ],
)
def test_bad_input_is_named(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        tokenize_corpus(predictions, references)


def test_strings_are_not_taken_for_tokens():
    with pytest.raises(ValueError, match="`caption` is 'a dog'"):
        to_tokens("a dog", None, "`caption`")
    with pytest.raises(ValueError, match=r"`references\[0\]\[0\]` is 'a dog'"):
        tokenize_references([["a dog"]], tokenizer=None)

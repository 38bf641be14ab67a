"""Exact match and token-F1 of answers."""

import pytest

from fusion_captioner.metrics.answers import answer_scores, answer_words, exact_matches, token_f1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes", "yes."),
        ("The left lung", "left lung"),
        ("T2-weighted", "t2 - weighted"),
        ("patient's chest", "a patient ' s  chest"),
        ("3.5 cm", "3 . 5 cm"),
    ],
)
def test_case_punctuation_and_articles_do_not_count(one: str, other: str) -> None:
    assert answer_words(one) == answer_words(other) and exact_matches([one], [other]).all()


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("right lung", "left lung", 0.5),
        ("lung left", "left lung", 1.0),  # of bags, but no exact match
        ("no no no", "no", 0.5),
        ("yes", "no", 0.0),
        ("", "no", 0.0),
        ("a", "a", 1.0),  # an article that is the whole answer
        ("?", "!", 1.0),
    ],
)
def test_f1_is_of_the_words_as_often_as_they_occur(prediction: str, reference: str, f1: float) -> None:
    assert token_f1([prediction], [reference]).tolist() == [f1]
    assert answer_scores([prediction], [reference])["token_f1"] == f1


def test_kinds_are_scored_apart() -> None:
    scores = answer_scores(
        ["yes", "no", "right lung", "x"], ["Yes.", "yes", "left lung", "x"], ["closed"] * 2 + ["open", ""]
    )
    assert scores == {
        "exact_match": 0.5,
        "token_f1": 0.625,
        "closed_exact_match": 0.5,
        "closed_token_f1": 0.5,
        "open_exact_match": 0.0,
        "open_token_f1": 0.5,
    }
    assert not exact_matches(["lung left"], ["left lung"]).any()


@pytest.mark.parametrize(
    ("predictions", "references", "kinds", "words"),
    [
        ([], [], None, "at least one"),
        (["a"], ["a", "b"], None, r"\(1\) and `references` \(2\)"),
        ("yes", ["yes"], None, "`predictions` must be a list .* 'yes'"),
        (["yes"], [["yes"]], None, r"`references` .* \['yes'\]"),
        (["yes"], ["yes"], ["open", "open"], "`kinds` holds 2 of 1"),
    ],
)
def test_what_is_no_answers_is_named(predictions, references, kinds, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        answer_scores(predictions, references, kinds)


def test_answers_of_other_scripts_keep_their_marks() -> None:
    assert exact_matches(["दायाँ", "左 肺", "cafe\u0301"], ["दायें", "左肺", "café"]).tolist() == [False, True, True]
    assert token_f1(["左肺炎"], ["右肺炎"]) == pytest.approx([2 / 3])

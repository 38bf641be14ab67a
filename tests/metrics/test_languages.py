"""Scores in every script: right words, and one folding of text in training and in scoring."""

import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusion_captioner.data.tokenizer_training import train_tokenizer
from fusion_captioner.metrics import (
    CiderD,
    caption_diversity,
    fold_caption,
    score_captions,
    tokenization,
    tokenize_caption,
)
from fusion_captioner.metrics.tokenization import TOKENIZERS, find_tokenizer

# In each a caption, and a wrong one that has the same consonants.
MARKED = {
    "hindi": ("कुत्ता घास पर दौड़ रहा है", "कत्ते घास पर दौड़ी रही हो"),
    "bengali": ("একটি কুকুর ঘাসের উপর দৌড়াচ্ছে", "একটা কোকার ঘাস উপরে দৌড়চ্ছি"),
    "thai": ("สุนัขวิ่งบนหญ้า", "สินขวงบินหญา"),
    "tamil": ("ஒரு நாய் புல்லில் ஓடுகிறது", "ஒர நயா பல்லால் ஓடகறத"),
    "khmer": ("ឆ្កែកំពុងរត់លើស្មៅ", "ឆ្កកពងរតលស្ម"),
    "hebrew": ("כֶּלֶב שָׁחֹר רָץ עַל הַדֶּשֶׁא", "כָּלוֹב שַׁחַר רַץ עֹל הָדָשָׁא"),
}
OTHERS = [["something else"], ["quite another thing"]]


def cider(prediction: str, reference: str) -> float:
    return score_captions(
        [prediction, "something else", "quite another thing"], [[reference], *OTHERS], per_image=True
    )["per_image"]["CIDEr"][0]


@pytest.mark.parametrize("language", MARKED)
def test_a_letter_keeps_its_marks(language: str):
    right, wrong = MARKED[language]
    for token in tokenize_caption(right):
        assert unicodedata.category(token[0])[0] != "M"
    letters = "".join(tokenize_caption(right))
    assert letters == unicodedata.normalize("NFKC", right).replace(" ", "")
    assert cider(right, right) == pytest.approx(10)
    assert cider(wrong, right) < 6


def test_scripts_without_spaces_are_split_by_character():
    assert tokenize_caption("狗dog在草地上。两只！") == ["狗", "dog", "在", "草", "地", "上", "两", "只"]
    assert tokenize_caption("ラーメン") == tokenize_caption("ﾗｰﾒﾝ") == ["ラ", "ー", "メ", "ン"]
    assert tokenize_caption("สุนัขวิ่ง") == ["สุ", "นั", "ข", "วิ่", "ง"]
    assert tokenize_caption("𠀀犬") == ["𠀀", "犬"]
    assert tokenize_caption("개가 달린다") == ["개가", "달린다"]
    assert tokenize_caption("ခွေး၊ကြောင်။") == ["ခွေး", "ကြော", "င်"]  # punctuation of such a script is no token
    scores = score_captions(
        ["一只黑狗在草地上跑", "两个人在海边"],
        [["一只狗在草地上奔跑"], ["两个男人站在海边"]],
        metrics=("CIDEr", "BLEU", "ROUGE-L"),
    )
    assert scores["CIDEr"] > 1 and scores["BLEU-4"] > 0.2 and scores["ROUGE-L"] > 0.5
    assert "tokenizer=auto" in scores["signature"]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("the man\N{RIGHT SINGLE QUOTATION MARK}s dog", "the man's dog"),
        ("the man 's dog", "the man's dog"),
        ("cafe\N{COMBINING ACUTE ACCENT}", "café"),
        ("ｄｏｇ", "dog"),
        ("well\N{NON-BREAKING HYPHEN}dressed", "well-dressed"),
        ("run\N{SOFT HYPHEN}ning", "running"),
        ("می\N{ZERO WIDTH NON-JOINER}رود", "میرود"),
        ("\N{HANGUL CHOSEONG KIYEOK}\N{HANGUL JUNGSEONG A}", "가"),
        ("ΣΚΥΛΟΣ", "σκυλος"),
        ("\N{LATIN SMALL LIGATURE FI}sh", "fish"),
        ("a\N{NO-BREAK SPACE}dog", "a dog"),
        ("dog \N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}", "dog"),
        ("man\N{ACUTE ACCENT}s", "man's"),
        ("ג\N{HEBREW PUNCTUATION GERESH}ירפה", "ג'ירפה"),
        ("葛\N{VARIATION SELECTOR-17}飾区", "葛飾区"),
        ("\N{RIGHT-TO-LEFT EMBEDDING}כלב\N{POP DIRECTIONAL FORMATTING}", "כלב"),
        ("e\N{ZERO WIDTH JOINER}\N{COMBINING ACUTE ACCENT}", "é"),
        ("dog \N{DIAERESIS}", "dog"),
        ("ك\N{ARABIC TATWEEL}لب", "كلب"),
    ],
)
def test_captions_that_look_the_same_are_the_same(left: str, right: str):
    assert tokenize_caption(left) == tokenize_caption(right)
    sentence = "a b c d {}"
    assert cider(sentence.format(left), sentence.format(right)) == pytest.approx(10)


def test_english_keeps_what_stands_inside_a_word():
    assert fold_caption("A Well-Dressed Man") == "a well-dressed man"
    assert tokenize_caption("- 'quoted' o'clock 3.5") == ["quoted", "o'clock", "3", "5"]


ASSIGNED = st.characters(exclude_categories=("Cn", "Co", "Cs"), exclude_characters="<")
# What is hard to give back: apostrophes, marks without a letter, joiners, marks of punctuation, scripts side by side.
WORDS = (
    "dog狗 man's 's n't 'll t-shirt 3.5 1,000 ½ ＤＯＧ İ ΣΚΥΛΟΣ ﬁ ´ ¨ \" “ ’ ' '' - -- . 。 ။ ， ( # $ % ー 々 〆 ・ "
    "ﾊﾟﾝ 한글 ㅋㅋ ဆ္ယ ၊ ꧈ ฯ สุนัข น้ำ कुत्ता। 👍🏽 cafe\u0301 か\u3099 می\u200cرود ❤\ufe0f 1\ufe0f\u20e3 葛\U000e0100"
)
PIECES = [*WORDS.split(), "\u0301", "\u200b", "\u200d", "\u00ad", "\u3000", "\x1f", "\n", " "]
CAPTIONS = st.lists(st.sampled_from(PIECES) | st.text(ASSIGNED, max_size=5), max_size=12).map("".join)


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(CAPTIONS, st.sampled_from([("wordpiece", True), ("wordpiece", False), ("byte_bpe", True)]))
@pytest.mark.slow
def test_what_a_trained_tokenizer_gives_back_scores_as_the_caption(caption: str, form: tuple[str, bool]):
    words = tokenize_caption(caption)
    if not words:
        return
    kind, lower_case = form
    tokenizer = train_tokenizer([caption], kind, vocab_size=30_000, lower_case=lower_case, min_frequency=1)
    back = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
    assert tokenize_caption(back) == words
    # CIDEr-D looks at one to four words: what is shorter has a lower highest score
    best = 10 * min(len(words), 4) / 4
    assert CiderD([[caption], ["zzzz"]]).score([back, ""])[0] == pytest.approx(best)


@pytest.mark.parametrize(
    "caption",
    [
        *(right for right, _ in MARKED.values()),
        "一只黑狗，在跑。",
        "the 'stop' sign, well- dressed",
        "a 'll\u200cএকটি",
    ],
)
def test_round_trip_of_real_captions(caption: str):
    tokenizer = train_tokenizer([caption], min_frequency=1)
    back = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
    assert tokenize_caption(back) == tokenize_caption(caption)
    assert " " not in back or " " in caption or "," in back


def test_full_stops_of_no_script_are_learned():
    tokenizer = train_tokenizer(["一只狗。", "एक कुत्ता।", "ခွေး။"], min_frequency=1)
    assert tokenizer.tokenize("一只狗。") == ["一", "只", "狗"]
    for caption in ("एक कुत्ता।", "ခွေး။"):
        assert tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True) == caption[:-1]


def test_spelling_keeps_what_scores_leave_out():
    caption = "مرد می\N{ZERO WIDTH NON-JOINER}رود\N{SOFT HYPHEN}"
    tokenizer = train_tokenizer([caption], min_frequency=1)
    back = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
    assert back == caption.removesuffix("\N{SOFT HYPHEN}")


def test_the_vocabulary_has_no_inner_form_of_characters_that_stand_alone():
    vocabulary = train_tokenizer(["一只狗 dog"], min_frequency=1).get_vocab()
    assert "狗" in vocabulary and "##狗" not in vocabulary and "##o" in vocabulary


def test_half_a_surrogate_pair_is_no_word():
    assert tokenize_caption("a dog \ud83d runs") == ["a", "dog", "runs"]


def test_tokenizers_are_found_by_name():
    assert find_tokenizer("words")("狗在跑 dog") == ["狗在跑", "dog"]
    assert find_tokenizer("characters")("狗 dog") == ["狗", "d", "o", "g"]
    assert set(TOKENIZERS) == {"auto", "words", "characters", "whitespace", "jieba"}
    with pytest.raises(ValueError, match=r"`tokenizer` \('ptb'\) must be one of auto, words"):
        score_captions(["a"], [["a"]], tokenizer="ptb")
    assert (
        "tokenizer=characters" in score_captions(["狗", "猫"], [["狗"], ["猫"]], tokenizer="characters")["signature"]
    )
    assert caption_diversity(["狗在跑", "狗在跳"], tokenizer="characters")["vocabulary"] == 4


def test_jieba_finds_chinese_words_or_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    tokenization._jieba_cut.cache_clear()
    with pytest.raises(ImportError, match="pip install jieba"):
        find_tokenizer("jieba")
    monkeypatch.undo()
    pytest.importorskip("jieba")
    assert find_tokenizer("jieba")("一只黑狗在草地上。") == ["一只", "黑狗", "在", "草地", "上"]


def test_a_score_of_zero_says_why(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        score_captions(["a dog"], [["a dog"]])
        score_captions(["ein hund", "katze"], [["a dog"], ["a cat"]])
        score_captions(["a dog", "cat"], [["a dog"], ["a dog"]])
    assert "there is one image" in caplog.messages[0]
    assert "share no words" in caplog.messages[1]
    assert "all images have the words" in caplog.messages[2]


@pytest.mark.real_data
def test_chinese_captions_of_people_agree(real_data: Path):
    images = json.loads((real_data / "flickr8k" / "dataset_flickr8k_zh.json").read_text(encoding="utf-8"))["images"]
    captions = [[sentence["raw"] for sentence in image["sentences"]] for image in images if image["split"] == "val"]
    first, others = [five[0] for five in captions], [five[1:] for five in captions]
    by_character = score_captions(first, others, metrics=("CIDEr",))["CIDEr"]
    as_one_word = score_captions(first, others, metrics=("CIDEr",), tokenizer="words")["CIDEr"]
    assert by_character > 5 * as_one_word

"""Scores in every script: right words, and one folding of text in training and in scoring."""

import json
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusion_captioner.data.tokenizer_training import train_tokenizer
from fusion_captioner.metrics import CiderD, caption_diversity, fold_caption, score_captions, tokenize_caption
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
    ],
)
def test_captions_that_look_the_same_are_the_same(left: str, right: str):
    assert tokenize_caption(left) == tokenize_caption(right)
    sentence = "a b c d {}"
    assert cider(sentence.format(left), sentence.format(right)) == pytest.approx(10)


def test_english_is_tokenized_as_before():
    assert fold_caption("A Well-Dressed Man") == "a well-dressed man"
    assert tokenize_caption("- 'quoted' don't 3.5") == ["-", "'quoted'", "don't", "3", "5"]


ASSIGNED = st.characters(exclude_categories=("Cn", "Co", "Cs", "Cc"))


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.text(ASSIGNED, min_size=1, max_size=40))
def test_what_a_trained_tokenizer_gives_back_scores_as_the_caption(caption: str):
    words = tokenize_caption(caption)
    if not words or "<" in caption:
        return
    tokenizer = train_tokenizer([caption], min_frequency=1, vocab_size=30_000)
    back = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
    assert tokenize_caption(back) == words
    if len(words) >= 4:
        assert CiderD([[caption], ["zzzz"]]).score([back, ""])[0] == pytest.approx(10)


@pytest.mark.parametrize(
    "caption", [*(right for right, _ in MARKED.values()), "一只黑狗，在跑。", "the 'stop' sign, well- dressed"]
)
def test_round_trip_of_real_captions(caption: str):
    tokenizer = train_tokenizer([caption], min_frequency=1)
    back = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
    assert tokenize_caption(back) == tokenize_caption(caption)
    assert " " not in back or " " in caption or "," in back


def test_chinese_full_stops_are_not_learned():
    tokenizer = train_tokenizer(["一只狗。", "一只猫。"], min_frequency=1)
    assert tokenizer.tokenize("一只狗。") == ["一", "只", "狗"]


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
    from fusion_captioner.metrics import tokenization

    monkeypatch.setattr(tokenization, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
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
    assert "there is one image" in caplog.messages[0]
    assert "share no words" in caplog.messages[1]


@pytest.mark.real_data
def test_chinese_captions_of_people_agree(real_data: Path):
    images = json.loads((real_data / "flickr8k" / "dataset_flickr8k_zh.json").read_text(encoding="utf-8"))["images"]
    captions = [[sentence["raw"] for sentence in image["sentences"]] for image in images if image["split"] == "val"]
    first, others = [five[0] for five in captions], [five[1:] for five in captions]
    by_character = score_captions(first, others, metrics=("CIDEr",))["CIDEr"]
    as_one_word = score_captions(first, others, metrics=("CIDEr",), tokenizer="words")["CIDEr"]
    assert by_character > 5 * as_one_word

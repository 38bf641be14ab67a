"""A tokenizer trained from captions: what it keeps, what it restores, that it is the same every time."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fusion_captioner.data.tokenizer_training import train_tokenizer

CAPTIONS = [
    "A man's dog runs along the beach .",
    "Two dogs run on a beach, near a man in a T-shirt.",
    "A man throws a ball to his dog .",
    'The child\'s dog waits behind a sign that says " no dogs " .',
    "A child in a red T-shirt throws a red ball on the beach .",
] * 3

KINDS = ("wordpiece", "byte_bpe")


def trained(kind: str, **settings: Any) -> PreTrainedTokenizerFast:
    return train_tokenizer(CAPTIONS, kind, **{"vocab_size": 500, **settings})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man's dog runs .", "a man's dog runs"),
        ("A man 's dog , in a T-shirt .", "a man's dog, in a t-shirt"),
        ("a man’s dog", "a man's dog"),
        ("He does n't run. It runs...", "he doesn't run. it runs"),
        ('a sign that says "no dogs", and one that says "red"', 'a sign that says "no dogs", and one that says "red"'),
        ("at 10:30, 2.5 miles (or 1,000 feet)", "at 10:30, 2.5 miles (or 1,000 feet)"),
        ("is it a zebra? yes!", "is it a zebra? yes!"),
        ("two\n lines\t of  ﬁve words", "two lines of five words"),
        ("  ", ""),
    ],
)
def test_decoding_restores_the_normalised_text(kind: str, text: str, expected: str):
    tokenizer = trained(kind)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == expected


def test_byte_bpe_restores_every_character():
    tokenizer = trained("byte_bpe")
    text = 'ein hund läuft ( schnell ), 犬 🐶 "'
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_wordpiece_decodes_quotation_marks_by_twos():
    tokenizer = train_tokenizer(CAPTIONS)
    text = 'the " red " dog, the " no dogs " sign'
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == (
        'the "red" dog, the "no dogs" sign'
    )


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_frame_a_text(kind: str):
    tokenizer = trained(kind)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<eos>")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    batch = tokenizer(["a dog", "a man throws a ball"], padding=True, return_tensors="pt")
    assert list(batch) == ["input_ids", "attention_mask"]
    assert batch["input_ids"][:, 0].tolist() == [1, 1]
    assert batch["input_ids"][0, -1] == 0
    assert batch["input_ids"][0][batch["attention_mask"][0].bool()][-1] == 2
    short = tokenizer("a man throws a ball", truncation=True, max_length=4)["input_ids"]
    assert len(short) == 4
    assert short[-1] == 2


def test_a_final_full_stop_costs_no_token():
    tokenizer = trained("wordpiece")
    assert tokenizer("a dog runs .") == tokenizer("a dog runs")
    assert "." in tokenizer.tokenize("a dog. a man")


def test_lower_case_is_a_choice():
    tokenizer = trained("wordpiece", lower_case=False)
    assert tokenizer.decode(tokenizer("A T-shirt")["input_ids"], skip_special_tokens=True) == "A T-shirt"


def test_no_ascii_text_is_unknown():
    tokenizer = trained("wordpiece")
    for text in ("zebra/giraffe & 7 okapis @ 23:59 #1 50% _x_", "quizzically jumping foxes"):
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("犬")["input_ids"]


@pytest.mark.slow
def test_vocabulary_is_the_same_every_time():
    """The library's own WordPiece trainer gives another one in every run."""
    code = (
        "import json, sys; from fusion_captioner.data.tokenizer_training import train_tokenizer as train;"
        "print(json.dumps(train(json.load(sys.stdin), vocab_size=140).get_vocab(), sort_keys=True))"
    )
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    other = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(shuffled), capture_output=True, text=True, check=True
    )
    vocabularies = [train_tokenizer(CAPTIONS, vocab_size=140).get_vocab() for _ in range(5)]
    assert all(vocabulary == json.loads(other.stdout) for vocabulary in vocabularies)
    assert (
        train_tokenizer(shuffled, "byte_bpe", 300).get_vocab()
        == train_tokenizer(CAPTIONS, "byte_bpe", 300).get_vocab()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_size_is_a_limit(kind: str):
    smallest = len(train_tokenizer(CAPTIONS, kind, 100_000, min_frequency=1000))
    assert len(train_tokenizer(CAPTIONS, kind, smallest + 20)) == smallest + 20
    assert smallest + 20 < len(train_tokenizer(CAPTIONS, kind, 100_000)) < smallest + 500


@pytest.mark.parametrize("kind", KINDS)
def test_saves_and_loads(kind: str, tmp_path: Path):
    tokenizer = trained(kind, model_max_length=77)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.model_max_length == 77
    assert loaded.pad_token_id == 0
    for text in CAPTIONS:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        ids = loaded(text)["input_ids"]
        assert loaded.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("captions", "settings", "message"),
    [
        ([], {}, r"`captions` \(0 of them\) must hold at least one text"),
        (["", " . "], {}, r"`captions` \(2 of them\) must hold at least one text"),
        ("a dog", {}, r"`captions` \('a dog'\) must be a list of texts"),
        (["a dog", None], {}, r"`captions\[1\]` \(None\) must be a text"),
        (CAPTIONS, {"kind": "unigram"}, r"`kind` \('unigram'\) must be 'wordpiece' or 'byte_bpe'"),
        (CAPTIONS, {"vocab_size": 50}, r"`vocab_size` \(50\) is too small: .* take \d+"),
        (CAPTIONS, {"vocab_size": 258, "kind": "byte_bpe"}, r"`vocab_size` \(258\) is too small: .* take 259"),
        (CAPTIONS, {"min_frequency": 0}, r"`min_frequency` \(0\) must be at least 1"),
        (CAPTIONS, {"model_max_length": 0}, r"`model_max_length` \(0\)"),
    ],
)
def test_what_cannot_be_trained_from_is_refused(captions: Any, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(captions, **settings)


@pytest.mark.real_data
@pytest.mark.parametrize("kind", KINDS)
def test_flickr8k(real_data: Path, kind: str):
    images = json.loads((real_data / "flickr8k" / "dataset_flickr8k.json").read_text())["images"]
    captions = {
        split: [sentence["raw"] for image in images if image["split"] == split for sentence in image["sentences"]]
        for split in ("train", "val")
    }
    tokenizer = train_tokenizer(captions["train"], kind, 4000)
    assert len(tokenizer) == 4000
    ids = tokenizer(captions["val"], add_special_tokens=False)["input_ids"]
    assert sum(map(len, ids)) < 1.1 * sum(len(re.findall(r"[\w'-]+", caption)) for caption in captions["val"])
    assert not any(tokenizer.unk_token_id in row for row in ids)

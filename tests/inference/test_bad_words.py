"""Words that captions do not have, however the captioner could spell them, on both runtimes."""

import numpy as np
import pytest
import torch
from tiny_exports import Export, tiny_processor
from tiny_models import pixels, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.generation import NoBadWordsLogitsProcessor

from fusion_captioner.data.tokenizer_training import train_tokenizer
from fusion_captioner.inference.bad_words import bad_words_ids
from fusion_captioner.inference.exported_captioner import ExportedCaptioner
from fusion_captioner.inference.torch_captioner import TorchCaptioner

CAPTIONS = [
    "a dog runs over snow",
    "a hot dog",
    "two dogs sit",
    "小狗在跑",
    "a woman and a man smile",
    "domes and ogres",
]


def texts_without(tokenizer: Tokenizer, words: list[str], texts: list[str], spelt: list[list[int]]) -> list[str]:
    """Those of `texts` that may be written with the tokens `spelt`."""
    if not (sequences := bad_words_ids(tokenizer, words, 1)):
        return texts
    forbidden = NoBadWordsLogitsProcessor(sequences, torch.tensor([2]))
    left = []
    for text, ids in zip(texts, spelt):
        context = [1, *ids]
        scores = [
            forbidden(torch.tensor([context[:place]]), torch.zeros(1, tokenizer.get_vocab_size()))[0, context[place]]
            for place in range(1, len(context))
        ]
        if min(scores) == 0:
            left.append(text)
    return left


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe"])
def test_a_word_is_gone_and_others_stay(kind: str) -> None:
    tokenizer = train_tokenizer(CAPTIONS * 20, kind=kind, vocab_size=600).backend_tokenizer
    spelt = [tokenizer.encode(text, add_special_tokens=False).ids for text in CAPTIONS]
    expected = {
        ("dog",): [text for text in CAPTIONS if " dog" not in text.replace("dogs", "")],
        ("Man",): [text for text in CAPTIONS if " man" not in text],
        ("hot dog",): [text for text in CAPTIONS if "hot" not in text],
        ("小狗",): [text for text in CAPTIONS if "狗" not in text],
        ("狗",): [text for text in CAPTIONS if "狗" not in text],
        ("domes", "a dog"): [CAPTIONS[1], CAPTIONS[2], CAPTIONS[3], CAPTIONS[4]],
        ("zebra🦓",): CAPTIONS,
    }
    for words, left in expected.items():
        assert texts_without(tokenizer, list(words), CAPTIONS, spelt) == left, words


def test_every_spelling_is_forbidden() -> None:
    wordpiece = {"[UNK]": 0, "dog": 1, "do": 2, "d": 3, "##og": 4, "##g": 5, "##o": 6, "##s": 7}
    tokenizer = Tokenizer(models.WordPiece(wordpiece, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert sorted(bad_words_ids(tokenizer, ["dog"], 9)) == [[1], [2, 5], [3, 4], [3, 6, 5]]
    pieces = {"▁": 0, "d": 1, "o": 2, "g": 3, "▁d": 4, "og": 5, "▁dog": 6}
    tokenizer = Tokenizer(models.BPE(pieces, [("▁", "d"), ("o", "g"), ("▁d", "og")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    inside, first = [[6], [0, 1, 2, 3], [0, 1, 5], [4, 2, 3], [4, 5]], [[9, 1, 2, 3], [9, 1, 5]]
    assert sorted(bad_words_ids(tokenizer, ["dog"], 9)) == sorted(inside + first)


def test_a_long_word_takes_no_time() -> None:
    tokenizer = train_tokenizer(["a" * 12, "aa", "aaa"] * 9, kind="byte_bpe", vocab_size=300).backend_tokenizer
    assert 2000 <= len(bad_words_ids(tokenizer, ["a" * 60], 1)) <= 8000


@pytest.mark.parametrize(("word", "words"), [(" ", "has an empty word"), ("</s>", "is a special token")])
def test_words_that_are_none(word: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bad_words_ids(tiny_processor().tokenizer.backend_tokenizer, [word], 1)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_both_runtimes_leave_words_out_alike(export: Export, tmp_path, settings: dict) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    captioners = TorchCaptioner(str(tmp_path), dtype="float32"), ExportedCaptioner(export("onnx"), num_threads=1)
    images = [np.uint8(each.permute(1, 2, 0).clamp(0, 1) * 255) for each in pixels(3)]
    words: list[str] = []
    for _ in range(4):
        found, exported = (each.caption(images, bad_words=words, max_new_tokens=6, **settings) for each in captioners)
        assert found == exported
        said = {word for texts in found for text in texts for word in text.split()}
        assert said and not said & set(words)
        words += sorted(said)

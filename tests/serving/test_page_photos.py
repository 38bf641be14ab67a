import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_exports import tiny_processor
from tiny_models import tiny_model

from fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.serving.page_photos import (
    BEAMS,
    MAX_NEW_TOKENS,
    PagePhotos,
    answers_questions,
    save_csv,
    save_sidecars,
    saved_captions,
)
from fusion_captioner.serving.page_texts import TEXTS, language_of


def photo(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 40, 3), np.uint8))


@pytest.fixture(scope="module")
def photos() -> PagePhotos:
    return PagePhotos(tiny_model(), tiny_processor())


def test_alternatives_have_the_probability_that_the_model_gives_them(photos: PagePhotos) -> None:
    found = photos.alternatives(photo())
    assert 1 < len(found) <= BEAMS and len({each.text for each in found}) == len(found)
    assert [each.probability for each in found] == sorted((each.probability for each in found), reverse=True)
    for each in found:
        inputs = photos.processor(images=photo(), text=[each.text], add_eos=True, return_tensors="pt")
        with torch.no_grad():
            scores = photos.model(**inputs).logits[0, :-1].log_softmax(-1)
        expected = scores.gather(-1, inputs["input_ids"][0, 1:, None]).sum().exp().item()
        assert each.probability == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def in_two_languages() -> PagePhotos:
    processor = tiny_processor()
    processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<|en|>", "<|zh|>"]})
    processor = FusionCaptionerProcessor(processor.image_processor, processor.tokenizer, languages=["en", "zh"])
    ids = list(processor.language_token_ids.values())
    return PagePhotos(
        tiny_model(vocab_size=len(processor.tokenizer), languages=["en", "zh"], language_token_ids=ids), processor
    )


def test_captions_are_in_the_language_that_is_chosen(in_two_languages: PagePhotos, tmp_path: Path) -> None:
    model, processor = in_two_languages.model, in_two_languages.processor
    assert in_two_languages.languages == ["en", "zh"]
    photo().save(tmp_path / "photo.png")
    for language in in_two_languages.languages:
        best = in_two_languages.alternatives(photo(), language)[0]
        inputs = processor(images=photo(), text=[best.text], language=language, add_eos=True, return_tensors="pt")
        with torch.no_grad():
            scores = model(**inputs).logits[0, 1:-1].log_softmax(-1)
        # neither BOS nor the language is found
        expected = scores.gather(-1, inputs["input_ids"][0, 2:, None]).sum().exp().item()
        assert best.probability == pytest.approx(expected, rel=1e-3)
        inputs = processor(images=photo(), language=language, return_tensors="pt")
        generated = model.generate(**inputs, num_beams=3, max_new_tokens=MAX_NEW_TOKENS)
        (expected_text,) = processor.batch_decode(generated, skip_special_tokens=True)
        ((found, _),) = in_two_languages.captions([str(tmp_path / "photo.png")], language)
        assert found == [(str(tmp_path / "photo.png"), expected_text.strip())]
    maps = [in_two_languages.word_maps(photo(), "w5 w6", "en", language) for language in ("en", "zh")]
    assert maps[0] != maps[1]


@pytest.mark.parametrize("language", TEXTS)
def test_every_word_has_its_maps_with_alt_text(photos: PagePhotos, language: str) -> None:
    html = photos.word_maps(photo(), "w5 w6 w7", language)
    assert html.count("<input") == 3 and html.count(" checked") == 1
    assert html.count("<img ") == 6  # occlusion, and attention next to it
    for word in ("w5", "w6", "w7"):
        start = TEXTS[language]["map_alt"].split("{place}")[0].format(word=word)
        assert html.count(f'alt="{start}') == 2
    without = PagePhotos(tiny_model(fusion_type="sum"), tiny_processor())
    assert without.word_maps(photo(), "w5 w6", language).count("<img ") == 2


def test_bad_photos_of_a_folder_are_reported(photos: PagePhotos, tmp_path: Path) -> None:
    for number in range(9):
        photo(number).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    names = [str(tmp_path / f"{number}.png") for number in range(9)]
    batches = list(photos.captions(names))
    assert [name for found, _ in batches for name, _ in found] == names[:3] + names[4:]
    (problem,) = [problem for _, problems in batches for problem in problems]
    assert "3.png" in problem


def test_saved_captions_are_read_by_training(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        photo(number).save(tmp_path / name)
    pairs = [("a.png", 'a "red" dog, running'), ("b.png", "两只狗")]
    table = save_csv(tmp_path / "captions.csv", pairs, False)
    assert list(csv.reader(table.open(encoding="utf-8")))[1:] == [list(pair) for pair in pairs]
    (split,) = load_caption_dataset(str(tmp_path), cache_dir=tmp_path / "cache").values()
    assert [row["captions"] for row in split] == [[text] for _, text in pairs]


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    pairs = [("a.png", "one"), ("sub/b.jpg", "two")]
    (tmp_path / "sub").mkdir()
    files = save_sidecars(tmp_path, pairs, False)
    assert [file.read_text() for file in files] == ["one\n", "two\n"]
    save_sidecars(tmp_path, pairs, False)  # the same again
    with pytest.raises(FileExistsError, match=r"b\.txt"):
        save_sidecars(tmp_path, [("a.png", "one"), ("sub/b.jpg", "three")], False)
    assert files[1].read_text() == "two\n"
    save_sidecars(tmp_path, [("a.png", "four"), ("sub/b.jpg", "three")], True)
    assert [file.read_text() for file in files] == ["four\n", "three\n"]
    with pytest.raises(ValueError, match="ending alone"):
        save_sidecars(tmp_path, [("a.png", "one"), ("a.jpg", "two")], True)
    save_csv(tmp_path / "captions.csv", pairs, False)
    with pytest.raises(FileExistsError, match=r"captions\.csv"):
        save_csv(tmp_path / "captions.csv", pairs[:1], False)


def test_captions_of_a_folder_are_read_and_the_newer_file_counts(tmp_path: Path) -> None:
    names, table, known = ["a.png", "sub/b.jpg", "c.png"], tmp_path / "captions.csv", {}
    assert saved_captions(tmp_path, names, table, known) == {} and known == {}
    (tmp_path / "sub").mkdir()
    table.write_text('image,caption\na.png,"one, old"\nsub/b.jpg,"two\nlines"\nc.png,\n')
    (tmp_path / "a.txt").write_text("\none,  new\n")
    os.utime(table, (1, 1))
    assert saved_captions(tmp_path, names, table, known) == {"a.png": "one, new", "sub/b.jpg": "two lines"}
    assert set(known) == {table, tmp_path / "a.txt"}
    os.utime(tmp_path / "a.txt", (0, 0))
    assert saved_captions(tmp_path, names, table, known)["a.png"] == "one, old"
    # what was read may be replaced, until somebody else changes it
    save_csv(table, [("a.png", "four")], False, known)
    save_csv(table, [("a.png", "five")], False, known)
    table.write_text("of another program")
    with pytest.raises(FileExistsError, match=r"captions\.csv"):
        save_csv(table, [("a.png", "six")], False, known)
    assert saved_captions(tmp_path, ["a.png"], table, {}) == {"a.png": "one, new"}  # the text file alone


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("\ufeffimage,caption\r\na.png,größer\r\n".encode(), {"a.png": "größer"}),  # "CSV UTF-8" of Excel
        (b'"image","caption"\na.png,"one\ntwo"\n', {"a.png": "one two"}),
    ],
)
def test_a_table_from_a_spreadsheet_is_read_and_may_be_replaced(
    content: bytes, shown: dict[str, str], tmp_path: Path
) -> None:
    table, known = tmp_path / "captions.csv", {}
    table.write_bytes(content)
    assert saved_captions(tmp_path, ["a.png", "b.png"], table, known) == shown
    save_csv(table, [*shown.items(), ("b.png", "machine")], False, known)
    assert saved_captions(tmp_path, ["a.png", "b.png"], table, {}) == shown | {"b.png": "machine"}


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"image;caption\na.png;one\n", {}),
        ("image,caption\na.png,größer\n".encode("latin-1"), {}),
        ("image,caption\na.png,one\n".encode("utf-16"), {}),
        (b'image,caption\na.png,"one\n', {}),
        (b"image,caption,note\na.png,one,mine\n", {"a.png": "one"}),
        (b"image,caption_0,caption_1\na.png,one,two\n", {}),
        (b"image,caption\na.png,one, and more\n", {"a.png": "one"}),
        (b"image,caption\na.png,one\na.png,two\n", {"a.png": "two"}),
        (b"image,caption\na.png,one\nmoved/b.png,two\n", {"a.png": "one"}),
    ],
)
def test_a_table_of_which_something_would_be_lost_stays(content: bytes, shown: dict[str, str], tmp_path: Path) -> None:
    table, known = tmp_path / "captions.csv", {}
    table.write_bytes(content)
    assert saved_captions(tmp_path, ["a.png"], table, known) == shown
    with pytest.raises(FileExistsError, match=r"captions\.csv: exists already with other content"):
        save_csv(table, [("a.png", "machine")], False, known)
    assert table.read_bytes() == content
    save_csv(table, [("a.png", "machine")], True, known)
    assert table.read_text() == "image,caption\na.png,machine\n"


@pytest.mark.parametrize(
    ("content", "shown"),
    [(b"one\n\ntwo\nthree\n", {"a.png": "one"}), ("größer\n".encode("latin-1"), {})],
)
def test_a_text_file_of_which_something_would_be_lost_stays(
    content: bytes, shown: dict[str, str], tmp_path: Path
) -> None:
    known: dict[Path, str] = {}
    (tmp_path / "a.txt").write_bytes(content)
    assert saved_captions(tmp_path, ["a.png"], tmp_path / "captions.csv", known) == shown
    with pytest.raises(FileExistsError, match=r"a\.txt: exists already with other content"):
        save_sidecars(tmp_path, [("a.png", "one")], False, known)
    assert (tmp_path / "a.txt").read_bytes() == content


def test_a_question_is_answered_and_an_empty_one_refused(photos: PagePhotos) -> None:
    assert isinstance(photos.answer(photo(), "w5 w6"), str)
    with pytest.raises(ValueError, match="question is empty"):
        photos.answer(photo(), " ")


def test_only_a_model_that_was_trained_to_answer_answers(tmp_path: Path) -> None:
    assert not answers_questions(str(tmp_path), "main")
    for task, expected in (("prompted", True), ("captioning", False)):
        (tmp_path / "task.json").write_text(json.dumps({"task": task, "data": {}}))
        assert answers_questions(str(tmp_path), "main") == expected


def test_both_languages_say_everything() -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    assert {language: len(texts["places"]) for language, texts in TEXTS.items()} == {"en": 9, "zh": 9}
    assert language_of("zh-CN,zh;q=0.9,en;q=0.8") == "zh"
    assert language_of("fr-FR, zh-TW;q=0.5") == "zh"
    assert language_of("") == language_of("fr") == "en"


def test_nothing_is_written_through_links(tmp_path: Path):
    folder, outside = tmp_path / "photos", tmp_path / "outside.txt"
    folder.mkdir()
    (folder / "b.txt").symlink_to(outside)  # leads nowhere: writing would make that file
    (folder / "captions.csv").symlink_to(outside)
    for replace_existing in (False, True):
        with pytest.raises(FileExistsError, match=r"b\.txt: is a link"):
            save_sidecars(folder, [("a.png", "one"), ("b.png", "two")], replace_existing)
        with pytest.raises(FileExistsError, match=r"captions\.csv: is a link"):
            save_csv(folder / "captions.csv", [("a.png", "one")], replace_existing)
    assert not outside.exists() and not (folder / "a.txt").exists()

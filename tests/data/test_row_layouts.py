"""Captions as people have them: tables of text, JSON lists, and caption files next to photos."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion_captioner.data.annotated_images import SkippedExample
from fusion_captioner.data.caption_datasets import detect_layout, load_caption_dataset
from fusion_captioner.data.caption_source import CaptionSource


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9, 3), len(path.name), np.uint8)).save(path)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load(source: Path, tmp_path: Path, **options):
    return load_caption_dataset(source, cache_dir=tmp_path / "cache", **options)


def captions(source: Path, tmp_path: Path, **options) -> dict[str, dict[str, list[str]]]:
    """Split → image id → captions."""
    loaded = load(source, tmp_path, **options)
    return {split: dict(zip(rows["image_id"], rows["captions"], strict=True)) for split, rows in loaded.items()}


DOGS = {"a.jpg": ["A dog.", "Two dogs, running."], "b c.JPG": ['A "big" cat.']}
TABLES = {
    "Kaggle's Flickr8k": (
        "captions.txt",
        'image,caption\na.jpg,A dog.\na.jpg,"Two dogs, running."\nb c.JPG,"A ""big"" cat."\n',
    ),
    "Kaggle's Flickr30k": (
        "results.csv",
        "image_name| comment_number| comment\na.jpg| 0| A dog.\na.jpg| 1   Two dogs, running.\n"
        'b c.JPG| 0| A "big" cat.\n',
    ),
    "Flickr8k's tokens": (
        "Flickr8k.token.txt",
        'a.jpg#0\tA dog.\na.jpg#1\tTwo dogs, running.\nb c.JPG#0\tA "big" cat.\n',
    ),
    "Flickr30k's tokens": (
        "results_20130124.token",
        'a.jpg#0\tA dog.\na.jpg#1\tTwo dogs, running.\nb c.JPG#0\tA "big" cat.\n',
    ),
    "semicolons, as Excel saves them": (
        "x.csv",
        'File Name;Caption\na.jpg;A dog.\na.jpg;Two dogs, running.\nb c.JPG;"A ""big"" cat."\n',
    ),
    "the delimiter in a first line for Excel": (
        "x.csv",
        'sep=;\nimage;caption\na.jpg;A dog.\na.jpg;Two dogs, running.\nb c.JPG;"A ""big"" cat."\n',
    ),
    "tabs": ("x.tsv", 'image\tcaption\na.jpg\tA dog.\na.jpg\tTwo dogs, running.\nb c.JPG\t"A ""big"" cat."\n'),
    "no header": ("x.csv", 'a.jpg,A dog.\na.jpg,"Two dogs, running."\nb c.JPG,"A ""big"" cat."\n'),
    "a pandas index, other columns": (
        "x.csv",
        ',image,width,caption\n0,a.jpg,9,A dog.\n1,a.jpg,9,"Two dogs, running."\n2,b c.JPG,9,"A ""big"" cat."\n',
    ),
    "several caption columns": (
        "x.csv",
        'image,caption_0,caption_1\na.jpg,A dog.,"Two dogs, running."\nb c.JPG,"A ""big"" cat.",\n',
    ),
    "lists in cells": (
        "x.csv",
        'filename,raw\na.jpg,"[""A dog."", ""Two dogs, running.""]"\nb c.JPG,"[\'A ""big"" cat.\']"\n',
    ),
    "a line break in a caption, blank lines": (
        "x.csv",
        'image,caption\n\na.jpg,"A\ndog."\na.jpg,"Two dogs,\nrunning."\n\nb c.JPG,"A ""big"" cat."\n',
    ),
    "empty values behind the last column": (
        "x.csv",
        'image,caption\na.jpg,A dog.,\na.jpg,"Two dogs, running.",,\nb c.JPG,"A ""big"" cat."\n',
    ),
    "blanks behind commas": (
        "x.csv",
        'image, caption\na.jpg, A dog.\na.jpg, "Two dogs, running."\nb c.JPG, "A ""big"" cat."\n',
    ),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables(tmp_path: Path, case: str, encoding: str):
    name, text = TABLES[case]
    root = tmp_path / "data"
    draw(root / "Images" / "a.jpg", root / "Images" / "b c.JPG")
    newline = "\n" if encoding == "utf-8" else "\r\n"
    table = write(root / name, text.replace("\n", newline).encode(encoding))
    assert captions(root, tmp_path) == {"train": DOGS}
    assert captions(table, tmp_path) == {"train": DOGS}


@pytest.mark.parametrize("folder", [".", "Images", "flickr30k_images/flickr30k_images"])
def test_the_folder_of_the_images_is_found(tmp_path: Path, folder: str):
    root = tmp_path / "data"
    draw(root / folder / "a.jpg", root / "more" / "other.jpg")
    write(root / "captions.csv", "image,caption\nmissing.jpg,Gone.\na.jpg,A dog.\n")
    assert captions(root, tmp_path, skip_bad_images=True) == {"train": {"a.jpg": ["A dog."]}}
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg.*image file is missing"):
        load(root, tmp_path)


def test_images_in_a_folder_that_is_named(tmp_path: Path):
    draw(tmp_path / "photos" / "a.jpg")
    table = write(tmp_path / "tables" / "captions.csv", "image,caption\na.jpg,A dog.\n")
    with pytest.raises(FileNotFoundError, match=r"no folder with the images .* such as 'a\.jpg' .*`images_folder`"):
        load(table, tmp_path)
    assert captions(table, tmp_path, images_folder=tmp_path / "photos") == {"train": {"a.jpg": ["A dog."]}}


def test_names_of_files_stay_in_the_folder(tmp_path: Path):
    root = tmp_path / "data"
    draw(root / "a.jpg", tmp_path / "outside.jpg")
    write(root / "x.csv", "image,caption\na.jpg,A dog.\n../outside.jpg,No.\n")
    with pytest.raises(ValueError, match=r"x\.csv, line 3.*leads out of the image folder"):
        load(root, tmp_path)


def test_photos_are_found_by_another_case_and_without_ending_where_one_is_meant(tmp_path: Path):
    root = tmp_path / "data"
    draw(root / "a.JPG", root / "1000.jpg", root / "two.jpg", root / "two.png")
    write(root / "x.csv", "image,caption\na.jpg,A.\n1000,B.\na.JPG,C.\n")
    assert captions(root, tmp_path) == {"train": {"a.JPG": ["A.", "C."], "1000.jpg": ["B."]}}
    write(root / "x.csv", "image,caption\na.jpg,A.\ntwo,B.\n")
    with pytest.raises(FileNotFoundError, match=r"two .*image file is missing"):
        load(root, tmp_path)


def test_columns_by_name(tmp_path: Path):
    draw(tmp_path / "data" / "a.jpg")
    table = write(tmp_path / "data" / "x.csv", "key,pic,english,german\n7,a.jpg,A dog.,Ein Hund.\n")
    with pytest.raises(ValueError, match=r"key, pic, english, german is called .*`image_column`") as caught:
        load(table.parent, tmp_path)
    assert "expected annotations/captions" in str(caught.value)
    options = {"image_column": "pic", "caption_column": ["english", "german"], "id_column": "key"}
    assert captions(table.parent, tmp_path, **options) == {"train": {"7": ["A dog.", "Ein Hund."]}}
    with pytest.raises(
        ValueError, match=r"`caption_column` is 'french', but the columns are key, pic, english, german"
    ):
        load(table, tmp_path, layout="table", image_column="pic", caption_column="french")


def test_splits_by_column_by_file_and_by_flickr8ks_lists(tmp_path: Path):
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    for root in ("column", "files", "lists"):
        draw(*(tmp_path / root / "Images" / name for name in names))
    parts = ["train", "validation", "test", "train"]
    rows = "".join(f"{name},It is {name},{split}\n" for name, split in zip(names, parts, strict=True))
    write(tmp_path / "column" / "x.csv", f"filename,caption,split\n{rows}")
    by_file = {"my_train.csv": "ad", "my_val.csv": "b", "my_test.csv": "c"}
    for file, letters in by_file.items():
        write(tmp_path / "files" / file, "image,caption\n" + "".join(f"{x}.jpg,It is {x}.jpg\n" for x in letters))
    expected = {
        "train": {"a.jpg": ["It is a.jpg"], "d.jpg": ["It is d.jpg"]},
        "val": {"b.jpg": ["It is b.jpg"]},
        "test": {"c.jpg": ["It is c.jpg"]},
    }
    assert captions(tmp_path / "column", tmp_path) == expected
    assert captions(tmp_path / "files", tmp_path) == expected
    text = tmp_path / "lists" / "Flickr8k_text"
    write(text / "Flickr8k.token.txt", "".join(f"{name}#0\tIt is {name}\n" for name in names))
    write(text / "Flickr8k.lemma.token.txt", "".join(f"{name}#0\tit be {name}\n" for name in names))
    write(text / "ExpertAnnotations.txt", "a.jpg\tb.jpg#2\t1\t1\t1\n")
    for split, letters in {"train": "a", "dev": "b", "test": "c"}.items():
        write(text / f"Flickr_8k.{split}Images.txt", "".join(f"{x}.jpg\n" for x in letters))
    without_d = {**expected, "train": {"a.jpg": ["It is a.jpg"]}}
    assert captions(tmp_path / "lists", tmp_path) == without_d


def test_an_image_in_two_splits_is_reported(tmp_path: Path):
    root = tmp_path / "data"
    draw(root / "a.jpg", root / "b.jpg", root / "c.jpg")
    write(root / "x.csv", "image,caption,split\na.jpg,A.,train\nb.jpg,B.,val\na.jpg,A.,val\n")
    with pytest.raises(ValueError, match=r"a\.jpg.*listed twice, in the splits 'train' and 'val'"):
        load(root, tmp_path)
    chosen = captions(root, tmp_path, splits={"all_of_it": "train+val", "val": "val"})
    assert {split: len(rows) for split, rows in chosen.items()} == {"all_of_it": 2, "val": 2}


def test_several_files_of_one_split_are_refused(tmp_path: Path):
    draw(tmp_path / "data" / "a.jpg")
    for name in ("x.csv", "y.csv"):
        write(tmp_path / "data" / name, "image,caption\na.jpg,A.\n")
    with pytest.raises(ValueError, match=r"more than one file of captions \(x\.csv, y\.csv\); give the path"):
        load(tmp_path / "data", tmp_path)


BROKEN = {
    "too few values": ("image,caption\na.jpg,A.\nb.jpg\n", r"x\.csv, line 3 .*1 value for the columns image, caption"),
    "too many values": (
        "image,caption\na.jpg,A dog, running.\n",
        r"x\.csv, line 2 .*3 values .*put values with commas",
    ),
    "too many values between tabs": ("image\tcaption\na.jpg\tA\tB\n", "3 values .*put values with tabs inside in"),
    "behind a caption of two lines": ('image,caption\na.jpg,"A\ndog."\nb.jpg\n', r"x\.csv, line 4 .*1 value"),
    "a column twice": ("image,caption,caption\na.jpg,A.,B.\n", r"there are two columns 'caption'; rename"),
    "too few values for three columns": (
        "image,source,caption\na.jpg,x,A.\nb.jpg,2 dogs run\n",
        r"x\.csv, line 3 .*2 values for the columns image, source, caption; complete it",
    ),
    "open quotes": ('image,caption\na.jpg,A.\nb.jpg,"B\n', r"x\.csv, line 3: broken row \(unexpected end"),
    "quotes inside of quotes": (
        'image,caption\na.jpg,"A "big" dog"\n',
        r"x\.csv, line 2: broken row .*double the quotes",
    ),
    "latin-1": (
        "image,caption\na.jpg,A.\nb.jpg,Un caf\xe9.\n".encode("latin-1"),
        r"x\.csv, line 3: not UTF-8 text .*0xe9",
    ),
    "a huge value": (
        f"image,caption\na.jpg,A.\nb.jpg,{'x' * 140_000}\n",
        r"x\.csv, line 3: broken row \(field larger than field limit \(131072\)\).*shorten the value",
    ),
    "a huge value in the first row": ("x" * 140_000, r"x\.csv, line 1: broken row \(field larger than field limit"),
    "empty": ("", r"the table is empty"),
    "no rows": ("image,caption\n", r"there are no rows"),
    "no delimiter": ("image caption\na.jpg dog\n", r"the delimiter cannot be told"),
    "no header, many columns": (
        "a.jpg,1,A dog.\nb.jpg,2,A cat.\n",
        r"no header, and 3 values per row; write a header",
    ),
    "unknown columns": ("photo,words\na.jpg,A.\n", r"none of the columns photo, words is called captions"),
    "an empty caption": ("image,caption\na.jpg, \n", r"caption 1 is empty"),
    "an empty name": ("image,caption\n,A dog.\na.jpg,A.\n", r"x\.csv, line 2 .*'' is not the name of a file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tables_are_one_line_with_its_number(tmp_path: Path, case: str):
    content, message = BROKEN[case]
    draw(tmp_path / "data" / "a.jpg", tmp_path / "data" / "b.jpg")
    table = write(tmp_path / "data" / "x.csv", content)
    for options in ({}, {"layout": "table"}):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load(table, tmp_path, **options)
        assert "\n" not in str(caught.value)


def test_a_broken_row_can_be_left_out(tmp_path: Path):
    draw(tmp_path / "data" / "a.jpg", tmp_path / "data" / "b.jpg")
    write(tmp_path / "data" / "x.csv", "image,caption\na.jpg,A.\nb.jpg\nb.jpg,B.\n")
    skipped: list[SkippedExample] = []
    options = {"skip_bad_images": True, "skipped": skipped}
    assert captions(tmp_path / "data", tmp_path, **options) == {"train": {"a.jpg": ["A."], "b.jpg": ["B."]}}
    assert [example.file for example in skipped] == [f"{tmp_path / 'data' / 'x.csv'}, line 3"]


def test_metadata_csv_is_an_imagefolder(tmp_path: Path):
    root = tmp_path / "data"
    draw(root / "train" / "a.jpg", root / "validation" / "b.jpg")
    write(root / "train" / "metadata.csv", 'file_name,text\na.jpg,"A dog, running."\na.jpg,A dog.\n')
    write(root / "validation" / "metadata.jsonl", '{"file_name": "b.jpg", "caption_0": "B.", "caption_1": "b"}\n')
    assert captions(root, tmp_path) == {
        "train": {"train/a.jpg": ["A dog, running.", "A dog."]},
        "val": {"validation/b.jpg": ["B.", "b"]},
    }


JSONS = {
    "a caption per row": (
        "captions.json",
        [{"image": f"{name}.jpg", "caption": text} for name, text in (("a", "A dog."), ("b", "B."), ("a", "Two."))],
    ),
    "captions of an image": (
        "data.json",
        [{"file_name": "a.jpg", "captions": ["A dog.", "Two."]}, {"file_name": "b.jpg", "captions": ["B."]}],
    ),
    "text": (
        "data.json",
        [{"filename": "./a.jpg", "text": ["A dog.", "Two."], "width": 9}, {"filename": "b.jpg", "text": "B."}],
    ),
}


@pytest.mark.parametrize("as_lines", ["", ".jsonl", ".json"])
@pytest.mark.parametrize("case", JSONS)
def test_json_lists_and_lines(tmp_path: Path, case: str, as_lines: str):
    name, rows = JSONS[case]
    root = tmp_path / "data"
    draw(root / "images" / "a.jpg", root / "images" / "b.jpg")
    text = "".join(json.dumps(row) + "\n" for row in rows) if as_lines else json.dumps(rows, indent=1)
    file = write((root / name).with_suffix(as_lines or ".json"), text)
    expected = {"train": {"a.jpg": ["A dog.", "Two."], "b.jpg": ["B."]}}
    assert captions(root, tmp_path) == captions(file, tmp_path) == expected


def test_json_files_of_splits(tmp_path: Path):
    root = tmp_path / "data"
    draw(root / "val2014" / "a.jpg", root / "val2014" / "b.jpg")
    write(root / "coco_karpathy_train.json", '[{"caption": "A.", "image": "val2014/a.jpg", "image_id": "coco_1"}]')
    write(root / "coco_karpathy_val.json", '[{"image": "val2014/b.jpg", "caption": ["B.", "b."]}]')
    expected = {"train": {"val2014/a.jpg": ["A."]}, "val": {"val2014/b.jpg": ["B.", "b."]}}
    assert captions(root, tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    {
        '{"a.jpg": "A dog."}': r"the columns a\.jpg is called",
        json.dumps(
            {f"{number}.jpg": "A." for number in range(999)}
        ): r"18\.jpg, 19\.jpg, \.\.\. \(999 in all\) is called",
        '[{"image": "a.jpg", "caption": "A."}, "b.jpg"]': r"x\.json, entry 2: expected an object",
        '[{"image": "a.jpg", "caption": "A."}, {"image": "a.jpg"}]': r"x\.json, entry 2: none of the columns image",
        '[{"image": "a.jpg", "caption": "A."}': r"x\.json: malformed JSON at line 1",
        '[{"image": "a.jpg", "caption": 7}]': r"caption 1 is int 7, not text",
        '[{"image": 5, "caption": "A."}, {"image": "a.jpg", "caption": "A."}]': r"entry 1 .*file_name 5 is not the",
        "nothing": r"does not begin with a list of objects",
    }.items(),
)
def test_json_that_is_no_list_of_captions(tmp_path: Path, text: str, message: str):
    draw(tmp_path / "data" / "a.jpg")
    write(tmp_path / "data" / "x.json", text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(tmp_path / "data", tmp_path)
    assert "\n" not in str(caught.value)


def test_rows_without_id_have_that_of_their_file(tmp_path: Path):
    root = tmp_path / "data"
    draw(root / "a.jpg", root / "b.jpg", root / "c.jpg")
    rows = [{"image": f"{name}.jpg", "caption": name, "id": key} for name, key in zip("abc", (None, 0, None))]
    write(root / "x.json", json.dumps(rows))
    expected = {"a.jpg": ["a"], "0": ["b"], "c.jpg": ["c"]}
    assert captions(root, tmp_path, id_column="id") == {"train": expected}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("bad", ["caption", "id", "image"])
def test_half_a_character_is_a_bad_example(tmp_path: Path, bad: str, streaming: bool):
    root = tmp_path / "data"
    draw(root / "a.jpg", root / "b.jpg", root / "\udce9.jpg")
    row = {"image": "b.jpg", "caption": "B.", "id": "b"} | {bad: "\udce9.jpg"}
    write(root / "x.json", json.dumps([{"image": "a.jpg", "caption": "A.", "id": "a"}, row]))
    options = {"id_column": "id", "streaming": streaming}
    with pytest.raises(ValueError, match=r"\\udce9.* is no UTF-8 text.*skip_bad_images") as caught:
        load(root, tmp_path, **options)
    assert "\n" not in str(caught.value) and str(caught.value).encode()
    skipped: list[SkippedExample] = []
    rows = load(root, tmp_path, skip_bad_images=True, skipped=skipped, **options)["train"]
    assert [row["image_id"] for row in rows] == ["a"]
    assert all(example.file.encode() and example.is_bad_file == (bad == "image") for example in skipped)
    again: list[SkippedExample] = []
    load(root, tmp_path, skip_bad_images=True, skipped=again, **options)
    assert again == skipped


def test_a_photo_with_a_name_that_is_no_text(tmp_path: Path):
    root = tmp_path / "data"
    for name in (b"a", b"caf\xe9"):
        draw(root / f"{os.fsdecode(name)}.jpg")
        write(root / f"{os.fsdecode(name)}.txt", "A dog.")
    with pytest.raises(ValueError, match=r"caf\\udce9\.jpg .*its name is no UTF-8 text; rename it"):
        load(root, tmp_path)
    assert captions(root, tmp_path, skip_bad_images=True) == {"train": {"a.jpg": ["A dog."]}}


def test_caption_files_next_to_photos(tmp_path: Path):
    root = tmp_path / "data"
    draw(root / "a.jpg", root / "B C.JPEG", root / "more" / "d.png", root / ".hidden.jpg")
    write(root / "a.txt", "\ufeffA dog.\r\n\r\nTwo dogs,\trunning.\r\n")
    write(root / "b c.caption", "A cat.")
    write(root / "more" / "d.png.txt", "D.\n")
    write(root / "readme.txt", "No photo has this name.")
    assert captions(root, tmp_path) == {
        "train": {"B C.JPEG": ["A cat."], "a.jpg": ["A dog.", "Two dogs, running."], "more/d.png": ["D."]}
    }


def test_caption_files_in_folders_of_splits(tmp_path: Path):
    for split in ("train", "valid"):
        draw(tmp_path / "data" / split / "a.jpg")
        write(tmp_path / "data" / split / "a.txt", f"{split} it is.")
    expected = {"train": {"train/a.jpg": ["train it is."]}, "val": {"valid/a.jpg": ["valid it is."]}}
    assert captions(tmp_path / "data", tmp_path) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    {
        ("a.jpg", "a.txt", "b.jpg"): r"b\.jpg.*has no caption file b\.txt next to it",
        ("a.jpg", "a.txt", "a.caption"): r"a\.jpg.*has two caption files, a\.txt and a\.caption",
        ("a.jpg", "a.png", "a.txt"): r"a\.png.*shares its caption file a\.txt with a\.jpg",
    }.items(),
)
def test_photos_without_one_caption_file(tmp_path: Path, files: tuple[str, ...], message: str):
    root = tmp_path / "data"
    for name in files:
        if Path(name).suffix in (".jpg", ".png"):
            draw(root / name)
        else:
            write(root / name, "A dog.")
    with pytest.raises(ValueError, match=message):
        load(root, tmp_path)


def test_a_caption_file_that_is_no_text(tmp_path: Path):
    draw(tmp_path / "data" / "a.jpg")
    write(tmp_path / "data" / "a.txt", b"Caf\xe9.")
    with pytest.raises(ValueError, match=r"a\.txt, line 1: not UTF-8 text"):
        load(tmp_path / "data", tmp_path)


def test_a_new_caption_file_is_read_without_being_asked_for(tmp_path: Path):
    root = tmp_path / "data"
    for name in ("a", "b"):
        draw(root / f"{name}.jpg")
        write(root / f"{name}.txt", name)
        assert len(load(root, tmp_path)["train"]) == "ab".index(name) + 1


def test_the_layout_is_logged_and_can_be_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = tmp_path / "data"
    draw(root / "a.jpg")
    write(root / "a.txt", "From the file.")
    write(root / "captions.csv", "image,caption\na.jpg,From the table.\n")
    with pytest.raises(ValueError, match="more than one layout; give `layout`, one of table, sidecar"):
        load(root, tmp_path)
    assert captions(root, tmp_path, layout="sidecar") == {"train": {"a.jpg": ["From the file."]}}
    assert captions(root, tmp_path, layout="table") == {"train": {"a.jpg": ["From the table."]}}
    (root / "a.txt").unlink()
    with caplog.at_level(logging.INFO, "fusion_captioner"):
        load(root, tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "read as" in record.getMessage()]
    assert line.startswith(f"{root}: read as the layout 'table' (captions.csv with the columns image, caption")
    assert "separated by commas" in line


def test_tables_next_to_an_established_layout_change_nothing(tmp_path: Path):
    root = tmp_path / "data"
    draw(root / "images" / "a.jpg")
    entry = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "Karpathy's."}]}
    write(root / "dataset_x.json", json.dumps({"images": [entry]}))
    write(root / "results.csv", "image,caption\na.jpg,The table's.\n")
    assert detect_layout(CaptionSource(str(root))) == "karpathy"


def test_what_is_no_layout_says_what_was_found(tmp_path: Path):
    write(tmp_path / "data" / "notes.md", "x")
    write(tmp_path / "data" / "more.md", "x")
    with pytest.raises(ValueError, match=r"expected annotations.*\.csv.*photo\.txt.*Found instead: 2 \.md"):
        load(tmp_path / "data", tmp_path)
    with pytest.raises(ValueError, match=r"Found instead: a file that ends in '\.md'"):
        load(tmp_path / "data" / "notes.md", tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_val_fraction_splits_by_photo_and_moves_none(tmp_path: Path, streaming: bool):
    root = tmp_path / "data"
    names = [f"{number}.jpg" for number in range(60)]
    draw(*(root / name for name in names))

    def parts(count: int) -> dict[str, set[str]]:
        rows = "".join(f"{name},{text}\n" for text in ("One.", "Two.") for name in names[:count])
        write(root / "captions.csv", f"image,caption\n{rows}")
        loaded = load(root, tmp_path, val_fraction=0.25, streaming=streaming)
        assert set(loaded) == {"train", "val"}
        return {split: {row["image_id"] for row in rows} for split, rows in loaded.items()}

    few, many = parts(40), parts(60)
    assert few["train"] | few["val"] == set(names[:40])
    assert not few["train"] & few["val"]
    assert 4 <= len(few["val"]) <= 16
    assert many["val"] & set(names[:40]) == few["val"]


def test_val_fraction_is_for_data_without_val(tmp_path: Path):
    root = tmp_path / "data"
    draw(root / "a.jpg", root / "b.jpg")
    write(root / "x.csv", "image,caption,split\na.jpg,A.,train\nb.jpg,B.,val\n")
    with pytest.raises(ValueError, match=r"`val_fraction` \(0\.1\).*has the splits train, val"):
        load(root, tmp_path, val_fraction=0.1)
    with pytest.raises(ValueError, match=r"`val_fraction` \(2\) must be between 0 and 1"):
        load(root, tmp_path, val_fraction=2)
    with pytest.raises(ValueError, match=r"leaves none of the 1 images .* for the split"):
        load(root, tmp_path, val_fraction=0.5, splits={"train": "train"})

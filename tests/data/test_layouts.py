import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from fusion_captioner.data.annotated_images import SkippedExample
from fusion_captioner.data.caption_datasets import detect_layout, load_caption_dataset
from fusion_captioner.data.caption_source import CaptionSource

OPENED: list[str] | None = None


def _note_opening(event: str, arguments: tuple) -> None:
    if event == "open" and OPENED is not None and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


sys.addaudithook(_note_opening)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths that Python opens during the test, in order."""
    global OPENED
    OPENED = []
    yield OPENED
    OPENED = None


def draw(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 9, 3), colour, np.uint8)).save(path)
    return path


def write_coco(root: Path, split: str, images: dict[int, str], captions: list[tuple[int, str]]) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    document = {
        "images": [{"id": image_id, "file_name": name} for image_id, name in images.items()],
        "annotations": [
            {"id": number, "image_id": image_id, "caption": text} for number, (image_id, text) in enumerate(captions)
        ],
    }
    (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(document))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    for split, ids in {"train2017": (1, 2, 3), "val2017": (4,)}.items():
        for image_id in ids:
            draw(root / split / f"{image_id:012d}.png", image_id)
        names = {image_id: f"{image_id:012d}.png" for image_id in ids}
        captions = [(image_id, f"  caption {number}\n of {image_id}. ") for number in (0, 1) for image_id in ids]
        write_coco(root, split, names, captions)
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    return root


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    root = tmp_path / "karpathy"
    entries = []
    for number, split in enumerate(["train", "restval", "val", "test", "train"]):
        folder = "train2014" if split == "train" else "val2014"
        draw(root / folder / f"{number}.png", number)
        sentences = [{"raw": f"Caption {k} of {number}.", "tokens": []} for k in range(5)]
        entry = {"filename": f"{number}.png", "filepath": folder, "cocoid": 100 + number, "imgid": number}
        entries.append(entry | {"split": split, "sentences": sentences})
    (root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": entries}))
    return root


def write_imagefolder(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(source: Path, **options):
    return load_caption_dataset(source, cache_dir=source.parent / "cache", **options)


def test_coco_layout(coco: Path):
    data = load(coco)
    assert set(data) == {"train", "val"}
    assert data["train"].features["image"] == datasets.Image(decode=False)
    assert data["train"]["image_id"][:] == ["1", "2", "3"]
    assert data["train"][1]["captions"] == ["caption 0 of 2.", "caption 1 of 2."]
    image = data["train"][1]["image"]
    assert image["bytes"] is None
    assert Path(image["path"]) == (coco / "train2017" / "000000000002.png")


def test_coco_images_elsewhere(coco: Path, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (coco / "train2017").rename(tmp_path / "photos" / "train2017")
    with pytest.raises(FileNotFoundError, match=r"train2017.*`images_folder`"):
        load(coco)
    data = load(coco, images_folder=tmp_path / "photos", splits={"train": "train2017"})
    assert Path(data["train"][0]["image"]["path"]).parent == tmp_path / "photos" / "train2017"


@pytest.mark.parametrize("place", ["annotations/captions_val2017.json", "captions_val2017.json", "my_val.json"])
@pytest.mark.parametrize("images", ["val2017", "images", "images_folder", "."])
def test_one_file_of_coco(coco: Path, tmp_path: Path, place: str, images: str):
    file = (coco / "annotations" / "captions_val2017.json").rename(coco / place)
    document = json.loads(file.read_text())
    file.write_text(json.dumps({"info": {"images": 1}} | document | {"licenses": ["x" * 2**21]}, indent=1))
    options = {"images_folder": tmp_path / "photos"} if images == "images_folder" else {}
    if images == "val2017" and place == "my_val.json":
        images = "val"  # the split in its name
    if images == ".":
        draw(coco / "000000000004.png")
        (coco / "val2017").rename(tmp_path / "away")
    elif images != "val2017":
        (coco / "val2017").rename(options.get("images_folder", coco / images))
    for layout in ("auto", "coco"):
        data = load(file, layout=layout, **options)
        assert {split: rows["captions"][:] for split, rows in data.items()} == {
            "val": [["caption 0 of 4.", "caption 1 of 4."]]
        }


def test_one_json_file_that_is_not_cocos(coco: Path):
    for name in ("captions_train.json", "captions_train.jsonl"):
        row = json.dumps({"image": "train2017/000000000001.png", "caption": "A."})
        (coco / name).write_text(row if name.endswith("l") else f"[{row}]")
        assert detect_layout(CaptionSource(str(coco / name))) == "json"


def test_a_karpathy_filepath_that_is_no_folder(karpathy: Path):
    path = karpathy / "dataset_coco.json"
    document = json.loads(path.read_text())
    for entry, sub_folder in zip(document["images"], ["x" * 5000, "\0", "\ud800", 5, []]):
        draw(karpathy / entry["filename"])
        entry["filepath"] = sub_folder
    path.write_text(json.dumps(document))
    assert load(karpathy)["train"].num_rows == 3


def test_splits_by_choice(coco: Path):
    assert load(coco, splits={"both": "train2017+val2017"})["both"].num_rows == 4
    with pytest.raises(ValueError, match="other than 'all'"):
        load(coco, splits={"all": "train2017"})
    with pytest.raises(ValueError, match=r"'minival'.*train2017, val2017"):
        load(coco, splits={"val": "minival"})
    write_coco(coco, "train2014", {9: "9.png"}, [(9, "x")])
    with pytest.raises(ValueError, match=r"train2014 and train2017 would both be the split 'train'"):
        load(coco)


def test_karpathy_layout_and_its_restval_rule(karpathy: Path):
    data = load(karpathy)
    assert {split: rows["image_id"][:] for split, rows in data.items()} == {
        "train": ["100", "101", "104"],
        "val": ["102"],
        "test": ["103"],
    }
    assert data["train"][1]["image"]["path"] == str(karpathy / "val2014" / "1.png")
    without = load(karpathy, splits={"train": "train", "val": "val"})
    assert without["train"]["image_id"][:] == ["100", "104"]
    assert load(karpathy / "dataset_coco.json")["val"].num_rows == 1


def test_imagefolder(tmp_path: Path):
    root = tmp_path / "folder"
    for name in ("a", "b"):
        draw(root / "train" / f"{name}.png")
    draw(root / "validation" / "c.png")
    rows = [{"file_name": "a.png", "text": "A."}, {"file_name": "b.png", "text": "B."}]
    write_imagefolder(root / "train", [*rows, {"file_name": "a.png", "text": "Another a."}])
    write_imagefolder(root / "validation", [{"file_name": "c.png", "captions": ["C.", "See."], "key": 7}])
    data = load(root)
    assert data["train"]["image_id"][:] == ["train/a.png", "train/b.png"]
    assert data["train"]["captions"][:] == [["A.", "Another a."], ["B."]]
    assert data["val"]["captions"][:] == [["C.", "See."]]
    assert load(root, id_column="key", splits={"val": "validation"})["val"]["image_id"][:] == ["7"]
    with pytest.raises(ValueError, match=r"line 1.*`caption_column` is 'title'.*file_name, text"):
        load(root, caption_column="title")


@pytest.mark.parametrize("layout", ["coco", "karpathy"])
def test_second_start_opens_nothing_of_the_source(layout: str, opened: list[str], request: pytest.FixtureRequest):
    root = request.getfixturevalue(layout)
    first = {split: rows[:] for split, rows in load(root).items()}
    assert any(path.endswith(".json") for path in opened if path.startswith(str(root)))
    assert any(path.endswith(".png") for path in opened if path.startswith(str(root)))
    opened.clear()
    assert {split: rows[:] for split, rows in load(root).items()} == first
    assert [path for path in opened if path.startswith(str(root))] == []


def test_changed_annotations_are_read_again(coco: Path):
    load(coco)
    write_coco(coco, "val2017", {4: "000000000004.png"}, [(4, "A new caption, longer.")])
    assert load(coco)["val"]["captions"][:] == [["A new caption, longer."]]


@pytest.mark.parametrize("name", ["*-train.arrow", "dataset_info.json", "digests.json"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_damaged_arrow_files_are_named_and_made_again(
    coco: Path, caplog: pytest.LogCaptureFixture, name: str, is_cut: bool
):
    before = load(coco)["train"].to_list()
    (file,) = (coco.parent / "cache").rglob(name)
    content = file.read_bytes()
    place = len(content) // 2
    file.write_bytes(content[:place] + (b"" if is_cut else bytes([content[place] ^ 8]) + content[place + 1 :]))
    caplog.clear()
    assert load(coco)["train"].to_list() == before
    (line,) = [line for line in caplog.messages if "read again" in line]
    assert str(file.parent) in line and (name == "digests.json" or f"{file.name} is damaged" in line)
    caplog.clear()
    assert load(coco)["train"].to_list() == before and "read again" not in caplog.text


@pytest.mark.parametrize("content", [b"", b"[", b"[1]", b'[{"split": "train"}]', b"[" * 200_000])
def test_a_damaged_list_of_bad_examples_is_made_again(coco: Path, content: bytes):
    before = load(coco)["train"].to_list()
    (file,) = (coco.parent / "cache").rglob("*.skipped.json")
    file.write_bytes(content)
    assert load(coco)["train"].to_list() == before
    assert json.loads(file.read_text()) == []


def test_streaming_gives_the_same_rows(coco: Path, karpathy: Path):
    for root in (coco, karpathy):
        streamed = load(root, streaming=True)
        assert isinstance(streamed, datasets.IterableDatasetDict)
        for split, rows in load(root).items():
            assert list(streamed[split]) == list(rows)
            assert streamed[split].features == rows.features


def bad_coco(root: Path, case: str) -> str:
    """Make one thing bad; what the message has to name."""
    image = root / "train2017" / "000000000002.png"
    names = {image_id: f"{image_id:012d}.png" for image_id in (1, 2, 3)}
    captions = [(image_id, "A caption.") for image_id in (1, 2, 3)]
    if case == "missing image":
        image.unlink()
        return str(image)
    if case == "zero bytes":
        image.write_bytes(b"")
        return str(image)
    if case == "text named .png":
        image.write_text("hello")
        return str(image)
    if case == "too many pixels":
        Image.new("1", (20_000, 20_000)).save(image)
        return str(image)
    if case == "annotation without image":
        captions.append((77, "Nobody's."))
    elif case == "image without caption":
        del captions[1]
    elif case == "empty caption":
        captions.append((2, " \n"))
    elif case == "caption of a wrong type":
        captions.append((2, 5))  # type: ignore[arg-type]
    elif case == "leaves its folder":
        names[2] = "../../outside.png"
        draw(root.parent / "outside.png")
    elif case == "absolute path":
        names[2] = str(draw(root.parent / "outside.png"))
    elif case == "link out of the folder":
        image.unlink()
        image.symlink_to(draw(root.parent / "outside.png"))
    elif case == "no name":
        names[2] = ""
    write_coco(root, "train2017", names, captions)
    return {"annotation without image": "77"}.get(case, "image_id '2'")


CASES = {
    "missing image": 2,
    "zero bytes": 2,
    "text named .png": 2,
    "too many pixels": 2,
    "annotation without image": 3,
    "image without caption": 2,
    "empty caption": 3,
    "caption of a wrong type": 3,
    "leaves its folder": 2,
    "absolute path": 2,
    "link out of the folder": 2,
    "no name": 2,
}


@pytest.mark.parametrize(("case", "rows_left"), CASES.items())
def test_bad_examples_raise_or_are_listed(coco: Path, case: str, rows_left: int, caplog: pytest.LogCaptureFixture):
    named = bad_coco(coco, case)
    with pytest.raises((ValueError, FileNotFoundError), match=r"skip_bad_images=True.*--skip-bad-images") as caught:
        load(coco)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) == (case == "missing image")

    skipped: list[SkippedExample] = []
    with caplog.at_level(logging.WARNING):
        data = load(coco, skip_bad_images=True, skipped=skipped)
    assert data["train"].num_rows == rows_left
    assert data["val"].num_rows == 1
    assert len(skipped) in (1, 2)  # an empty caption may be an image's only one
    assert all(example.split == "train" for example in skipped)
    assert f"{len(skipped)} bad examples left out" in caplog.text

    again: list[SkippedExample] = []
    load(coco, skip_bad_images=True, skipped=again)
    assert again == skipped


def test_a_refused_load_leaves_no_arrow_files(coco: Path):
    bad_coco(coco, "zero bytes")
    with pytest.raises(ValueError, match="empty"):
        load(coco)
    assert not list((coco.parent / "cache").rglob("*.arrow"))


def test_a_mended_image_comes_back(coco: Path):
    image = coco / "train2017" / "000000000002.png"
    content = image.read_bytes()
    image.write_bytes(b"")
    assert load(coco, skip_bad_images=True)["train"].num_rows == 2
    image.write_bytes(content)
    assert load(coco, skip_bad_images=True)["train"].num_rows == 3


def test_streaming_checks_an_image_when_its_turn_comes(coco: Path):
    bad_coco(coco, "text named .png")
    rows = iter(load(coco, streaming=True)["train"])
    assert next(rows)["image_id"] == "1"
    with pytest.raises(ValueError, match=r"000000000002.png.*not an image"):
        next(rows)
    assert [row["image_id"] for row in load(coco, streaming=True, skip_bad_images=True)["train"]] == ["1", "3"]


def test_repeated_image_ids(tmp_path: Path):
    root = tmp_path / "coco"
    for name in ("a", "b"):
        draw(root / "val2017" / f"{name}.png")
    write_coco(root, "val2017", {1: "a.png"}, [(1, "One."), (1, "Two.")])
    path = root / "annotations" / "captions_val2017.json"
    document = json.loads(path.read_text())
    document["images"].append({"id": 1, "file_name": "a.png"})
    path.write_text(json.dumps(document))
    assert load(root)["val"]["captions"][:] == [["One.", "Two."]]
    document["images"].append({"id": 1, "file_name": "b.png"})
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"b.png.*already names.*a.png"):
        load(root)


def malformed(tmp_path: Path, case: str) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    if case == "no such folder":
        root.rmdir()
    elif case == "no layout":
        (root / "notes.txt").write_text("hello")
    elif case == "malformed JSON":
        (root / "dataset_x.json").write_text('{"images": [')
    elif case == "another JSON":
        (root / "dataset_x.json").write_text("[1, 2]")
    elif case == "no sentences":
        (root / "dataset_x.json").write_text('{"images": [{"filename": "a.png", "split": "train"}]}')
    elif case == "not UTF-8":
        (root / "dataset_x.json").write_bytes(b'{"images": "\xff"}')
    elif case == "malformed lines":
        (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{oops\n')
    elif case == "two layouts":
        (root / "dataset_x.json").write_text("{}")
        (root / "metadata.jsonl").write_text("")
    elif case == "no id":
        write_coco(root, "val2017", {}, [])
        (root / "val2017").mkdir()
        (root / "annotations" / "captions_val2017.json").write_text('{"images": [{}], "annotations": []}')
    elif case in ("image that is none", "annotation that is none"):
        write_coco(root, "val2017", {1: "a.png"}, [])
        (root / "val2017").mkdir()
        path = root / "annotations" / "captions_val2017.json"
        key = case.split()[0] + "s"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: [["x"] * 999]}))
    elif case in KARPATHY_SPLITS:
        images = [{"filename": "a.png", "split": split, "sentences": []} for split in ("val", KARPATHY_SPLITS[case])]
        (root / "dataset_x.json").write_text(json.dumps({"images": images}))
    elif case == "no images":
        (root / "dataset_x.json").write_text('{"images": []}')
    elif case == "Karpathy's image that is none":
        (root / "dataset_x.json").write_text('{"images": [null]}')
    elif case == "number":
        (root / "dataset_x.json").write_text('{"images": [\n{"caption": "' + "1" * 5000 + '", "cocoid": ' + "1" * 5000)
    elif case == "number in lines":
        (root / "metadata.jsonl").write_text("\n" + '{"file_name": ' + "1" * 5000)
    elif case == "number in rows":
        (root / "rows.json").write_text('[{"image": "a.png", "caption": "x", "id": ' + "1" * 5000 + "}]")
    return root


KARPATHY_SPLITS = {"split null": None, "split number": 5, "split list": ["val"], "split empty": " "}


@pytest.mark.parametrize(
    ("case", "message"),
    {
        "no such folder": "no such file or folder",
        "empty folder": "is empty; expected annotations/captions",
        "no layout": "none of the known layouts; expected annotations/captions",
        "malformed JSON": "dataset_x.json: malformed JSON at line 1, column 13",
        "another JSON": 'expected a JSON object with a list "images"',
        "no sentences": r'images\[0\] has no "sentences"',
        "not UTF-8": "not UTF-8",
        "malformed lines": "metadata.jsonl, line 2: malformed JSON",
        "two layouts": "more than one layout; give `layout`, one of karpathy, imagefolder",
        "no id": r'captions_val2017.json: images\[0\] has no "id"; it needs "id", "file_name"',
        "image that is none": r"captions_val2017.json: images\[0\] \(\['x', .{,60}\]\) is no object; it needs",
        "annotation that is none": r'annotations\[0\] \(\[.{,60}\]\) is no object; it needs "image_id", "caption"',
        "split null": r'dataset_x.json: images\[1\]\["split"\] \(None\) is no text',
        "split number": r'images\[1\]\["split"\] \(5\) is no text',
        "split list": r"""images\[1\]\["split"\] \(\['val'\]\) is no text""",
        "split empty": r"""images\[1\]\["split"\] \(' '\) is no text""",
        "no images": "dataset_x.json: has no images",
        "Karpathy's image that is none": r'images\[0\] \(None\) is no object; it needs "filename"',
        "number": "dataset_x.json, line 2: a number of more than 4300 digits",
        "number in lines": "metadata.jsonl, line 2: a number of more than 4300 digits",
        "number in rows": "rows.json: a number of more than 4300 digits",
    }.items(),
)
def test_malformed_sources_give_one_clear_line(tmp_path: Path, case: str, message: str):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(malformed(tmp_path, case))
    assert "\n" not in str(caught.value)


def test_arguments_that_do_not_fit_are_refused(coco: Path):
    with pytest.raises(ValueError, match=r"`layout` \('voc'\) must be 'auto' or one of 'coco'"):
        load(coco, layout="voc")
    with pytest.raises(ValueError, match=r"`caption_column` \(text\) means nothing in the layout 'coco'"):
        load(coco, caption_column="text")
    with pytest.raises(FileNotFoundError, match="`images_folder`"):
        load(coco, images_folder=coco / "nowhere")
    with pytest.raises(FileNotFoundError, match="no dataset_"):
        load(coco, layout="karpathy")


def test_what_is_no_path_is_a_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert detect_layout(CaptionSource("someone/captions")) == "hub"
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        detect_layout(CaptionSource("./someone/captions"))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "sizes"),
    {
        "coco": {"train": (80, 400), "val": (155, 775)},
        "flickr8k": {"train": (6000, 30000), "val": (1000, 5000)},
        "coco_single_caption": {"train": (1997, 1997)},
    }.items(),
)
def test_real_folders(real_data: Path, tmp_path: Path, name: str, sizes: dict[str, tuple[int, int]]):
    data = load_caption_dataset(real_data / name, cache_dir=tmp_path)
    found = {split: (len(rows), sum(map(len, rows["captions"]))) for split, rows in data.items()}
    assert found.keys() == sizes.keys()
    for split, (images, captions) in sizes.items():
        assert found[split][0] == images
        assert found[split][1] >= captions
        row = data[split][images // 2]
        assert os.path.isfile(row["image"]["path"])
        assert len(set(data[split]["image_id"])) == images


def test_captions_in_a_further_language_are_read_by_their_own_path(tmp_path: Path):
    draw(tmp_path / "images" / "a.png")
    for name, caption in {"dataset_flickr8k": "a dog", "dataset_flickr8k_zh": "一只狗"}.items():
        entry = {"filename": "a.png", "imgid": 0, "split": "train", "sentences": [{"raw": caption}]}
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": [entry]}))
    assert load(tmp_path)["train"][0]["captions"] == ["a dog"]
    assert load(tmp_path / "dataset_flickr8k_zh.json")["train"][0]["captions"] == ["一只狗"]

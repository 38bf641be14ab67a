import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fusion_captioner import FusionCaptionerImageProcessor
from fusion_captioner.data.annotated_images import SkippedExample
from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.data.image_files import open_image


def picture(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), colour, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, columns: dict, **types) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns)
    for name, feature in types.items():
        table = table.cast_column(name, feature)
    table.to_parquet(path)
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    root = tmp_path / "shards"
    for split, colours in {"train": (1, 2, 3), "validation": (4,)}.items():
        columns = {
            "photo": [{"bytes": picture(colour), "path": None} for colour in colours],
            "words": [[f"a {colour}", f"b {colour}"] for colour in colours],
            "key": list(colours),
        }
        write_parquet(root / f"{split}-00000-of-00001.parquet", columns, photo=datasets.Image())
    return root


def load(source: Path, **options):
    return load_caption_dataset(source, cache_dir=source.parent / "cache", **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_shards(shards: Path, streaming: bool):
    data = load(shards, caption_column="words", id_column="key", streaming=streaming)
    assert set(data) == {"train", "val"}
    rows = list(data["train"])
    assert [row["image_id"] for row in rows] == ["1", "2", "3"]
    assert rows[1]["captions"] == ["a 2", "b 2"]
    assert rows[1]["image"]["bytes"] == picture(2)
    assert data["train"].features["image"] == datasets.Image(decode=False)
    assert set(rows[0]) == {"image", "captions", "image_id"}


def test_images_of_shards_are_not_copied(shards: Path):
    data = load(shards, caption_column="words", id_column="key")["train"]
    files = {Path(file["filename"]) for file in data.cache_files}
    with_images = [file for file in files if picture(2) in file.read_bytes()]
    assert len(with_images) == 1


@pytest.mark.parametrize("with_id", [True, False])
def test_one_caption_a_row_is_joined_by_image(tmp_path: Path, with_id: bool):
    colours = [5, 6, 5, 6, 7]
    columns = {"image": [picture(colour) for colour in colours], "text": [f"{n} of it" for n in range(5)]}
    if with_id:
        columns["image_id"] = colours
    source = write_parquet(tmp_path / "one.parquet", columns)
    rows = load(source)["train"]
    assert rows["captions"][:] == [["0 of it", "2 of it"], ["1 of it", "3 of it"], ["4 of it"]]
    assert [image["bytes"] for image in rows["image"]] == [picture(5), picture(6), picture(7)]
    if with_id:
        assert rows["image_id"][:] == ["5", "6", "7"]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_id_are_different_images(tmp_path: Path, streaming: bool):
    ids = [None, "a", "", None, None, ""]
    columns = {"image": [picture(n) for n in (1, 2, 3, 1, 4, 5)], "text": list("uvwxyz"), "image_id": ids}
    rows = list(load(write_parquet(tmp_path / "one.parquet", columns), streaming=streaming)["train"])
    found = {}
    for row in rows:
        found.setdefault(row["image_id"], []).extend(row["captions"])
    assert list(found.values()) == [["u", "x"], ["v"], ["w"], ["y"], ["z"]] and list(found)[1] == "a"


@pytest.mark.parametrize("text", [pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("streaming", [False, True])
def test_tables_of_polars(tmp_path: Path, text: pa.DataType, streaming: bool):
    (tmp_path / "a.png").write_bytes(picture(1))
    columns = {
        "image": pa.array(["a.png"], text),
        "captions": pa.array([["A.", "B."]], pa.large_list(text)),
        "image_id": pa.array(["1"], text),
    }
    pq.write_table(pa.table(columns), tmp_path / "names.parquet")
    with pytest.raises(ValueError, match="'image' holds text; give `images_folder`"):
        load(tmp_path / "names.parquet", streaming=streaming)
    (row,) = load(tmp_path / "names.parquet", images_folder=tmp_path, streaming=streaming)["train"]
    expected = {"captions": ["A.", "B."], "image_id": "1"}
    assert row == expected | {"image": {"path": str(tmp_path / "a.png"), "bytes": None}}

    image = [{"bytes": picture(1), "path": "a.png"}]
    columns["image"] = pa.array(image, pa.struct({"bytes": pa.large_binary(), "path": text}))
    pq.write_table(pa.table(columns), tmp_path / "images.parquet")
    (row,) = load(tmp_path / "images.parquet", streaming=streaming)["train"]
    assert row == expected | {"image": image[0]}


def test_webdataset_shards(tmp_path: Path):
    root = tmp_path / "web"
    root.mkdir()
    with tarfile.open(root / "train-000.tar", "w") as shard:
        for key in ("001", "002"):
            for suffix, content in (
                ("png", picture(int(key))),
                ("json", json.dumps({"caption": f"of {key}"}).encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    for streaming in (False, True):
        rows = list(load(root, caption_column="json.caption", streaming=streaming)["train"])
        assert [(row["image_id"], row["captions"]) for row in rows] == [("001", ["of 001"]), ("002", ["of 002"])]
        assert rows[0]["image"]["bytes"] == picture(1)


def test_a_column_of_file_names(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture(1))
    (tmp_path / "b.png").write_bytes(picture(2))
    columns = {"image": ["a.png", "../b.png"], "caption": ["A.", "B."]}
    source = write_parquet(tmp_path / "names.parquet", columns)
    with pytest.raises(ValueError, match="`images_folder`"):
        load(source)
    with pytest.raises(ValueError, match="lies outside the folder of the data"):
        load(source, images_folder=tmp_path / "photos")
    rows = load(source, images_folder=tmp_path / "photos", skip_bad_images=True)["train"]
    assert [image["path"] for image in rows["image"]] == [str(tmp_path / "photos" / "a.png")]


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows(tmp_path: Path, streaming: bool):
    columns = {"image": [picture(1), b"oops", b"", picture(2), picture(3)], "caption": ["A.", "B.", "C.", " ", "E."]}
    source = write_parquet(tmp_path / "bad.parquet", columns)
    with pytest.raises(ValueError, match=r"bad.parquet.*not an image.*--skip-bad-images"):
        list(load(source, streaming=streaming)["train"])
    skipped: list[SkippedExample] = []
    rows = load(source, streaming=streaming, skip_bad_images=True, skipped=skipped)["train"]
    assert [row["captions"] for row in rows] == [["A."], ["E."]]
    if not streaming:
        reasons = [example.reason for example in skipped]
        assert reasons == [
            "not an image, or one of a format that is not read",
            "image file is empty (0 bytes)",
            "caption 1 is empty",
            "image without caption",
        ]


def test_clear_lines_for_columns_and_files(tmp_path: Path, shards: Path):
    with pytest.raises(ValueError, match=r"photo, words, key is called .*`caption_column`"):
        load(shards)
    with pytest.raises(ValueError, match=r"`image_column` is 'picture', but the columns are photo, words, key"):
        load(shards, image_column="picture", caption_column="words")
    with pytest.raises(ValueError, match=r"'key' holds .*no images"):
        load(shards, image_column="key", caption_column="words")
    broken = tmp_path / "broken.parquet"
    broken.write_text("no parquet")
    with pytest.raises(ValueError, match=r"broken.parquet: `datasets` cannot load it as 'parquet'") as caught:
        load(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_decodes_no_image_of_any_column(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch):
    def decode_example(*arguments: object, **settings: object) -> None:
        raise AssertionError("outside of the bounds")

    monkeypatch.setattr(datasets.Image, "decode_example", decode_example)
    image = {"bytes": picture(1), "path": None}
    columns = {"image": [image], "mask": [image], "crops": [[image]], "caption": ["a dog"]}
    types = {"image": datasets.Image(), "mask": datasets.Image(), "crops": datasets.List(datasets.Image())}
    source = write_parquet(tmp_path / "data" / "train.parquet", columns, **types)
    (row,) = load(source, image_column="image", streaming=streaming)["train"]
    picture_of_row = open_image(row["image"], "1", FusionCaptionerImageProcessor())
    assert picture_of_row.getpixel((0, 0)) == (1, 1, 1)

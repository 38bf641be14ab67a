"""Which files are photos, and which of them data may name."""

import os
import unicodedata
from io import BytesIO
from pathlib import Path

import datasets
import fsspec
import pytest
from huggingface_hub import HfFileSystem
from PIL import Image

from fusion_captioner.data import image_files
from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.data.image_files import ImageFolder, find_images, image_path_problem, open_image, photo_suffixes
from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 9)).save(path)
    return path


def test_a_folder_holds_photos_and_other_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photos = [draw(tmp_path / "b.PNG"), draw(tmp_path / "deep" / "a.jpg")]
    for name in (".hidden.jpg", "._b.jpg", ".thumbnails/a.jpg"):
        draw(tmp_path / name)
    for name in ("paper.pdf", "film.mpg", "data.h5", "drawing.eps", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe\x1b[2J.png")
    assert list(find_images([str(tmp_path)])) == sorted(map(str, photos))
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 left out that are no files" in line and "\x1b" not in line
    assert {".jpg", ".png", ".webp", ".tif"} <= photo_suffixes()


def test_heic_photos_are_counted_where_they_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    draw(tmp_path / "a.jpg")
    for number in range(3):
        (tmp_path / f"{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setattr(image_files, "find_spec", lambda name: None)
    assert len(list(find_images([str(tmp_path)]))) == 1
    assert "3 HEIC photos left out; pip install 'fusion-captioner[heic]'" in capsys.readouterr().err
    assert "an HEIC photo; pip install" in image_files.image_problem(b"\0\0\0\x18ftypheic")


def test_heic_photos_are_read(tmp_path: Path):
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "photo.heic"
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), (200, 10, 10))).save(path)
    processor = FusionCaptionerImageProcessor(size={"height": 32, "width": 32})
    red, green, _ = open_image({"path": str(path), "bytes": None}, "", processor).getpixel((5, 5))
    assert red > 180 and green < 40
    assert list(find_images([str(tmp_path)])) == [str(path)]


def test_a_large_photo_is_decoded_near_the_size_that_the_model_takes(tmp_path: Path):
    Image.new("RGB", (640, 480)).save(tmp_path / "photo.jpg")
    processor = FusionCaptionerImageProcessor(size={"height": 64, "width": 64})
    picture = {"path": str(tmp_path / "photo.jpg"), "bytes": None}
    assert open_image(picture, "", processor).size == (160, 120)
    processor.do_resize = False
    assert open_image(picture, "", processor).size == (640, 480)


@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_names_are_found_in_another_spelling(written: str, tmp_path: Path):
    name = unicodedata.normalize(written, "Käse/Äpfel.jpg")
    draw(tmp_path / name)
    folder = ImageFolder(tmp_path)
    for form in ("NFC", "NFD"):
        for spelt in ("Käse/Äpfel.jpg", "Käse\\Äpfel.jpg"):
            assert folder.resolve(unicodedata.normalize(form, spelt)) == str(tmp_path / name)
    for outside in ("..\\..\\etc\\passwd", "../x.jpg", "/etc/passwd"):
        try:
            found = folder.resolve(outside)
        except ValueError:
            continue
        assert found.startswith(f"{tmp_path}/")


def test_data_may_name_their_own_files_and_public_urls(tmp_path: Path):
    inside = draw(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "link.png").symlink_to(draw(tmp_path / "secret.png"))
    folder = str(tmp_path / "photos")
    assert image_path_problem(str(inside), folder, False) is None
    assert image_path_problem("hf://datasets/a/b/c.jpg", folder, False) is None
    assert "--allow-urls" in image_path_problem("HTTP://photos.example/a.jpg", folder, False)
    assert "neither a file nor" in image_path_problem("a\0.jpg", folder, False)
    assert image_path_problem("https://photos.example/a.jpg", folder, True) is None
    for other in (
        "file:///etc/passwd",
        "s3://bucket/a.jpg",
        "zip://a.jpg::http://127.0.0.1/b.zip",
        "ftp://a/b",
        "hf://a::file:///b",
    ):
        assert image_path_problem(other, folder, True) == "is neither a file nor an http(s) URL"
    for outside in ("/etc/passwd", f"{folder}/../secret.png", f"{folder}/link.png", str(tmp_path)):
        assert image_path_problem(outside, folder, True) == "lies outside the folder of the data"


@pytest.mark.parametrize("kind", ["struct", "text"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_tables_do_not_lead_out_of_their_folder(
    kind: str, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    draw(tmp_path / "data" / "a.png")
    secret = draw(tmp_path / "secret.png")
    monkeypatch.chdir(tmp_path)  # where a relative path would lead
    source = tmp_path / "data" / "rows.parquet"
    options = {"streaming": streaming, "cache_dir": tmp_path / "cache"}
    if kind == "text":
        options["images_folder"] = tmp_path / "data"
    for path, fits in {
        "a.png": True,
        str(secret): False,
        "../secret.png": False,
        "http://127.0.0.1:1/a.png": False,
        "file:///etc/passwd": False,
    }.items():
        image = {"bytes": None, "path": path} if kind == "struct" else path
        datasets.Dataset.from_dict({"image": [image], "caption": ["a dog"]}).to_parquet(source)
        if fits:
            row = next(iter(load_caption_dataset(source, **options)["train"]))
            assert row["image"]["path"] == str(tmp_path / "data" / "a.png")
            continue
        with pytest.raises((ValueError, FileNotFoundError), match=r"outside the folder|is a URL|neither a file"):
            list(load_caption_dataset(source, **options)["train"])


def test_what_is_opened_at_last_is_guarded_again():
    processor = FusionCaptionerImageProcessor()
    with pytest.raises(OSError, match="not a public address"):
        open_image({"path": "http://127.0.0.1:1/a.png", "bytes": None}, "", processor)
    with pytest.raises(ValueError, match="neither a file nor"):
        open_image({"path": "file:///etc/passwd", "bytes": None}, "", processor)


def test_images_of_the_hub_are_decoded_within_the_same_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files: dict[str, bytes] = {}

    class Hub(fsspec.AbstractFileSystem):
        protocol = "hf"

        def _open(self, path: str, mode: str = "rb", **settings: object) -> BytesIO:
            return BytesIO(files[path])

    fsspec.register_implementation("hf", Hub, clobber=True)
    try:
        processor = FusionCaptionerImageProcessor(size={"height": 32, "width": 32})
        files["datasets/a/b.png"] = draw(tmp_path / "a.png").read_bytes()
        image = {"path": "hf://datasets/a/b.png", "bytes": None}
        assert open_image(image, "1", processor).size == Image.open(tmp_path / "a.png").size
        monkeypatch.setattr("fusion_captioner.image_decoding.MAX_DECODED_BYTES", 10)
        with pytest.raises(ValueError, match=r"^hf://datasets/a/b\.png: .* to decode"):
            open_image(image, "1", processor)
        monkeypatch.setattr(image_files, "MAX_DOWNLOAD_BYTES", 10)
        with pytest.raises(ValueError, match=r"^hf://datasets/a/b\.png: more than"):
            open_image(image, "1", processor)
        files.clear()
        with pytest.raises(ValueError, match=r"^hf://datasets/a/b\.png: cannot be read \('datasets/a/b\.png'\)$"):
            open_image(image, "1", processor)
    finally:
        fsspec.register_implementation("hf", HfFileSystem, clobber=True)
    with pytest.raises(ValueError, match="neither a file nor"):
        open_image({"path": "hf://datasets/a/b.png::file:///etc/passwd", "bytes": None}, "1", processor)

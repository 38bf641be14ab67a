"""Captions inside photos: read by others, nothing else changed."""

import io
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_captioner import FakeCaptioner
from PIL import Image

from fusion_captioner.cli import main
from fusion_captioner.inference import captioner as captioners
from fusion_captioner.inference.photo_metadata import IPTC, IPTC_CHARSET, UTF_8, XMP, write_description

pyexiv2 = pytest.importorskip("pyexiv2")

TEXT = "ein Café, 狗 & <b>"


def photo(path: Path, **settings: object) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def pixel_bytes(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def scan(content: bytes) -> bytes:
    """The compressed pixels of a JPEG without thumbnails, and whatever lies behind them."""
    return content[content.index(b"\xff\xda") :]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.jp2"])
def test_a_description_is_written_and_the_pixels_stay(name: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker", 6
    path = photo(tmp_path / name, **({} if name == "a.jp2" else {"exif": exif}))
    path.chmod(0o640)
    before = pixel_bytes(path)
    assert write_description(str(path), TEXT)
    assert pixel_bytes(path) == before and stat.S_IMODE(path.stat().st_mode) == 0o640
    with pyexiv2.Image(str(path)) as image:
        assert image.read_xmp()[XMP] == {'lang="x-default"': TEXT}
        assert name == "a.webp" or image.read_iptc()[IPTC] == TEXT
        if name != "a.jp2":
            assert image.read_exif()["Exif.Image.Make"] == "a maker"
            assert image.read_exif()["Exif.Image.Orientation"] == "6"
    assert not write_description(str(path), "another")
    assert write_description(str(path), "another", overwrite=True)
    with pyexiv2.Image(str(path)) as image:
        assert image.read_xmp()[XMP] == {'lang="x-default"': "another"}
    assert os.listdir(tmp_path) == [name]


def test_every_byte_of_the_pixels_stays_and_what_lies_behind_them(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.jpg", quality=80, progressive=True)
    path.write_bytes(path.read_bytes() + b"a film that the phone has put behind the photo")
    before = scan(path.read_bytes())
    assert write_description(str(path), TEXT)
    assert scan(path.read_bytes()) == before


@pytest.mark.parametrize("field", ["xmp", "iptc"])
def test_a_description_of_another_program_stays(field: str, tmp_path: Path) -> None:
    path = photo(tmp_path / "a.jpg")
    with pyexiv2.Image(str(path)) as image:
        if field == "xmp":
            image.modify_xmp({XMP: {'lang="de-DE"': "von Hand"}})
        else:
            image.modify_iptc({IPTC: "by hand"})
    before = path.read_bytes()
    assert not write_description(str(path), TEXT)
    assert path.read_bytes() == before


def photo_of_an_older_program(path: Path, fields: dict[str, object]) -> Path:
    """A photo with IPTC in Latin-1."""
    photo(path)
    with pyexiv2.Image(str(path)) as image:
        image.modify_iptc(fields, encoding="latin-1")
    assert b"Z\xfcrich" in path.read_bytes()
    return path


@pytest.mark.parametrize("overwrite", [False, True])
def test_texts_in_latin_1_stay_the_same_texts(tmp_path: Path, overwrite: bool) -> None:
    fields = {
        "Iptc.Application2.City": "Zürich",
        "Iptc.Application2.Keywords": ["Käse", "Brot", "Öl"],
        "Iptc.Application2.DateCreated": "2001-02-03",
        "Iptc.Application2.Preview": "255 216 255",
    }
    path = photo_of_an_older_program(tmp_path / "a.jpg", fields)
    assert write_description(str(path), TEXT, overwrite)
    with pyexiv2.Image(str(path)) as image:
        found = image.read_iptc()
    assert found.pop(IPTC) == TEXT and found.pop(IPTC_CHARSET) == UTF_8
    assert found == fields


def test_bytes_that_are_no_text_stay(tmp_path: Path) -> None:
    fields = {"Iptc.Application2.City": "Zürich", "Iptc.0x0003.0x000a": "\xff\xd8\xfe"}
    path = photo_of_an_older_program(tmp_path / "a.jpg", fields)
    assert write_description(str(path), TEXT)
    assert b"\xff\xd8\xfe" in path.read_bytes()[2:]


def test_a_description_in_latin_1_stays(tmp_path: Path) -> None:
    path = photo_of_an_older_program(tmp_path / "a.jpg", {IPTC: "in Zürich"})
    before = path.read_bytes()
    assert not write_description(str(path), TEXT)
    assert path.read_bytes() == before


def test_metadata_that_cannot_be_read_name_the_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = photo(tmp_path / "a.jpg")
    monkeypatch.setattr(pyexiv2.ImageData, "read_xmp", lambda self: b"\xff".decode())
    with pytest.raises(ValueError, match=r"a\.jpg: its description cannot be written \(.*can't decode byte 0xff"):
        write_description(str(path), TEXT)


def test_a_long_description_fits_into_iptc(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.jpg")
    assert write_description(str(path), "狗" * 1000)
    with pyexiv2.Image(str(path)) as image:
        assert image.read_xmp()[XMP] == {'lang="x-default"': "狗" * 1000}
        assert image.read_iptc()[IPTC] == "狗" * 666


def test_what_cannot_hold_one_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(captioners, "load_on_runtime", lambda *arguments, **settings: FakeCaptioner())
    for name in ("a.png", "b.gif", "c.png"):
        Image.new("RGB", (8, 8), (7, 0, 0)).save(tmp_path / name)
    gif = (tmp_path / "b.gif").read_bytes()
    command = ["caption", str(tmp_path), "--model", "fake", "--write-metadata"]
    assert main(command) == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 3
    assert f"{tmp_path}/b.gif: its description cannot be written" in output.err
    assert (tmp_path / "b.gif").read_bytes() == gif
    assert "7" in pyexiv2.ImageData((tmp_path / "c.png").read_bytes()).read_xmp()[XMP]['lang="x-default"']
    assert main(command) == 1
    assert "2 of 3 images had captions already" in capsys.readouterr().err
    assert main(["caption", "https://example.com/a.png", "--model", "fake", "--write-metadata"]) == 2
    assert "this is a URL; download it first" in capsys.readouterr().err


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = photo(tmp_path / "a.jpg")
    monkeypatch.setitem(sys.modules, "pyexiv2", None)
    assert main(["caption", str(path), "--model", "fake", "--write-metadata"]) == 2
    assert "pip install 'fusion-captioner[metadata]'" in capsys.readouterr().err


def test_damaged_metadata_are_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    Image.new("RGB", (8, 8)).save(content, "JPEG", exif=exif.tobytes()[:-6] + b"\xff" * 6)
    path = tmp_path / "a.jpg"
    path.write_bytes(content.getvalue())
    assert write_description(str(path), TEXT)
    assert capfd.readouterr().err == ""


def test_no_description_is_written_through_a_link(tmp_path: Path) -> None:
    outside = photo(tmp_path / "outside.jpg")
    before = outside.read_bytes()
    (tmp_path / "a.jpg").symlink_to(outside)
    with pytest.raises(FileExistsError, match=r"a\.jpg: is a link, through which nothing is written"):
        write_description(str(tmp_path / "a.jpg"), TEXT)
    assert outside.read_bytes() == before

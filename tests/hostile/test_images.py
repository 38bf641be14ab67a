"""No image takes more memory than it may, crashes the loader or is reported in more than one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from images import BOMBS, CONTAINERS, UNDERSTATED, good_files, iptc, mutated_files, write_bomb
from PIL import Image

from fusion_captioner.data.image_files import image_problem
from fusion_captioner.image_decoding import MAX_DECODED_BYTES, REFUSED_FORMATS, ImageTooLargeError
from fusion_captioner.image_loading import load_image, load_resized_image

SETTINGS = {"do_resize": True, "size": {"height": 32, "width": 32}, "resize_mode": "squash", "resample": 3}
MUTATIONS = int(os.environ.get("FUSION_CAPTIONER_MUTATIONS", "150"))
# Loads files in threads, as commands do, and prints what was said of each, and the growth of the process in MB.
LOAD = """
import sys
sys.path.insert(0, {folder!r})
from images import peak_kib
from concurrent.futures import ThreadPoolExecutor
from fusion_captioner import image_decoding
from fusion_captioner.image_loading import load_resized_image
image_decoding.MAX_DECODED_BYTES = {limit}
image_decoding.LARGE_BYTES //= 4
load_resized_image(sys.argv[1], {settings})
before = peak_kib()
def load(path):
    try:
        load_resized_image(path, {settings})
    except ValueError as error:
        print(str(error).splitlines())
with ThreadPoolExecutor(4) as pool:
    list(pool.map(load, sys.argv[2:]))
print((peak_kib() - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from Linux's /proc")
@pytest.mark.slow
def test_large_pictures_take_a_bounded_share_of_memory(tmp_path: Path):
    """In four threads, of which without bounds each takes up to 140 MB; a quarter of the real limit, to be quick."""
    small = write_bomb(tmp_path, "alpha.png", 40)
    files = [str(write_bomb(tmp_path, name, 2600)) for name in BOMBS]
    limit = MAX_DECODED_BYTES // 4
    command = [
        sys.executable,
        "-c",
        LOAD.format(settings=SETTINGS, limit=limit, folder=str(Path(__file__).parent)),
        str(small),
        *files,
    ]
    *errors, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert int(grown) < limit / 1024**2 + 80
    assert len(errors) == 2 and all(f"MiB to decode (the limit is {limit // 1024**2})" in error for error in errors)


@pytest.mark.parametrize(("name", "limit"), zip(UNDERSTATED, (3, 9, 2, 6), strict=True))  # bytes per pixel
def test_what_a_header_understates_is_counted(name: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fusion_captioner.image_decoding.MAX_DECODED_BYTES", 704**2 * limit)
    with pytest.raises(ImageTooLargeError, match="MiB to decode"):
        load_resized_image(str(write_bomb(tmp_path, name, 704)), SETTINGS)
    assert load_resized_image(str(write_bomb(tmp_path, name, 160)), SETTINGS).size == (32, 32)


@pytest.mark.parametrize("name", [*CONTAINERS, "drawing.jpg"])
def test_a_format_that_holds_any_other_is_not_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`drawing.jpg` holds one that Pillow has Ghostscript run."""
    path = tmp_path / name
    path.write_bytes(CONTAINERS[name](64) if name in CONTAINERS else iptc(b"%!PS-Adobe-3.0 EPSF-3.0\n"))
    Image.init()
    opened = []
    for kind in REFUSED_FORMATS & Image.OPEN.keys():
        monkeypatch.setitem(Image.OPEN, kind, (lambda *_: opened.append(1), Image.OPEN[kind][1]))
    for source in (str(path), path.read_bytes()):
        with pytest.raises(ValueError, match="of a format that is not read"):
            load_resized_image(source, SETTINGS)
        assert image_problem(source) == "not an image, or one of a format that is not read"
    assert not opened


def test_a_photo_with_a_preview_is_in_one_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MPO, which phones write; two pictures of which neither takes what one of several scans would."""
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (800, 600)).save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (80, 60))])
    monkeypatch.setattr("fusion_captioner.image_decoding.MAX_DECODED_BYTES", 800 * 600 * 5)
    assert load_image(str(path), (600, 800)).size == (800, 600)


def test_a_large_progressive_photo_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that needs no conversion is the picture itself; it was closed with the file."""
    monkeypatch.setattr("fusion_captioner.image_decoding.LARGE_BYTES", 1000)
    picture = load_resized_image(str(write_bomb(tmp_path, "progressive.jpg", 400)), SETTINGS)
    assert picture.size == (32, 32) and picture.getpixel((3, 3)) == (0, 0, 0)


def test_a_photo_of_200_megapixels_is_read(tmp_path: Path):
    path = tmp_path / "large.jpg"
    Image.new("L", (16_320, 12_240), 200).save(path, quality=30)
    picture = load_resized_image(path, SETTINGS)
    assert picture.size == (32, 32) and abs(picture.getpixel((3, 3))[0] - 200) < 3


@pytest.mark.parametrize("name", [name for name in BOMBS if name not in ("16_bit.png",)])
def test_pictures_above_the_size_of_a_band_look_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mode, kind, options = BOMBS[name]
    picture = Image.linear_gradient("L").resize((300, 200))
    picture = picture.convert(mode) if mode in ("F", "I", "L") else picture.convert("RGB").convert(mode)
    if options.get("turned"):
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {**options, "exif": exif}
    path = tmp_path / name
    picture.save(path, kind, **{key: value for key, value in options.items() if key != "turned"})
    whole = load_resized_image(path, SETTINGS)
    monkeypatch.setattr("fusion_captioner.image_decoding.MAX_PIXELS_AT_ONCE", 1000)
    in_bands = load_resized_image(path, SETTINGS)
    assert in_bands.size == whole.size
    difference = [abs(a - b) for a, b in zip(whole.tobytes(), in_bands.tobytes(), strict=True)]
    assert sum(difference) / len(difference) < (6 if mode in ("1", "P") else 2)


def test_mutated_files_are_read_or_refused_in_one_line():
    refused = 0
    for content in mutated_files(good_files(), MUTATIONS):
        try:
            load_image(content, (32, 32))
        except (ValueError, OSError) as error:
            assert "\n" not in str(error)
            refused += 1
    assert 0 < refused < MUTATIONS


def test_damaged_metadata_prints_nothing(tmp_path: Path):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.new("RGB", (40, 30)).save(path, exif=exif.tobytes()[:-6])
    code = f"from fusion_captioner.image_loading import load_image; print(load_image({str(path)!r}).size)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(40, 30)\n" and done.stderr == ""

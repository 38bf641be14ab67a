"""Every kind of image becomes the same upright RGB picture; what is no image gives one clear line."""

import base64
import os
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusion_captioner import image_decoding, image_downloads, image_loading
from fusion_captioner.image_loading import (
    images_to_pixel_values,
    load_image,
    normalization,
    resize_image,
    write_normalized,
)
from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor


def quarters(width: int = 64, height: int = 48) -> Image.Image:
    """Four flat quarters: red, green above blue, yellow. Flat, so that JPEG and resizing leave their colours alone."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = (255, 255, 0)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def distance(image: Image.Image, other: Image.Image) -> float:
    assert image.mode == "RGB"
    assert image.size == other.size
    return float(np.abs(np.asarray(image, float) - np.asarray(other, float)).mean())


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def server() -> Iterator[str]:
    """A web server with `/quarters.png`, `/page.html` and `/broken`; everything else is 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages = {"/quarters.png": encoded(quarters()), "/page.html": b"<html>no image</html>"}
            if self.path == "/broken":
                self.send_error(500)
            elif self.path not in pages:
                self.send_error(404)
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(pages[self.path])

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def test_imports_neither_torch_nor_transformers():
    code = (
        "import sys; sys.argv[0] = 'fusion-captioner'; import fusion_captioner.image_loading;"  # as its console script
        "print({'torch', 'transformers', 'urllib.request'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path, server: str):
    picture = quarters()
    path = tmp_path / "quarters.png"
    picture.save(path)
    content = path.read_bytes()
    pixels = np.asarray(picture)
    sources = {
        "path": str(path),
        "Path": path,
        "URL": f"{server}/quarters.png",
        "data URL": "data:image/png;base64," + base64.b64encode(content).decode(),
        "base64": base64.b64encode(content * 2).decode(),
        "bytes": content,
        "dict with bytes": {"path": None, "bytes": content},
        "dict with path": {"path": str(path), "bytes": None},
        "PIL": picture,
        "HWC": pixels,
        "CHW": pixels.transpose(2, 0, 1),
        "floats to 1": pixels.transpose(2, 0, 1).astype(np.float32) / 255,
        "floats to 255": pixels.astype(np.float64),
        "int64": pixels.astype(np.int64),
        "uint16": pixels.astype(np.uint16) * 257,
        "uint8 tensor": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        "float tensor": torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 255,
        "bfloat16 tensor": (torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 255).bfloat16().requires_grad_(),
    }
    for kind, source in sources.items():
        assert distance(load_image(source), picture) == 0, kind


def test_shape_that_could_be_either_is_hwc_for_arrays_and_chw_for_tensors():
    pixels = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert load_image(pixels).size == (5, 3)
    assert load_image(torch.from_numpy(pixels)).size == (3, 5)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_become_rgb_as_pillow_converts_them(mode: str):
    image = quarters().convert(mode)
    assert distance(load_image(image), image.convert("RGB")) == 0


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_files_keep_their_colours(format: str):
    content = encoded(quarters().convert("CMYK"), format)
    assert Image.open(BytesIO(content)).mode == "CMYK"
    assert distance(load_image(content), quarters()) < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "PA", "P", "L", "RGB"])
def test_transparent_pixels_are_white(mode: str):
    alpha = Image.new("L", (8, 8), 0)
    alpha.paste(255, (0, 0, 4, 8))
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    if mode in ("P", "L", "RGB"):  # these name one colour as transparent
        image.paste((255, 0, 0), (4, 0, 8, 8))
        image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=2) if mode == "P" else image.convert(mode)
        transparency = {"P": image.getpixel((5, 5)), "L": image.getpixel((5, 5)), "RGB": (255, 0, 0)}[mode]
        loaded = load_image(encoded(image, transparency=transparency))
    else:
        image = {"LA": image.convert("L"), "La": image.convert("L"), "PA": image.convert("P")}.get(mode, image)
        image.putalpha(alpha)
        image = {"La": lambda: image.convert("La"), "RGBa": lambda: image.convert("RGBa")}.get(mode, lambda: image)()
        assert image.mode == mode
        loaded = load_image(image)
    assert loaded.getpixel((1, 4)) == (0, 0, 0)
    assert loaded.getpixel((6, 4)) == (255, 255, 255)


def test_half_transparent_pixels_are_mixed_with_white():
    assert load_image(Image.new("RGBA", (2, 2), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_greys_are_scaled_and_not_cut_off(format: str):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    loaded = load_image(encoded(Image.fromarray(ramp), format))
    grey = np.asarray(loaded)[0, :, 0].astype(int)
    np.testing.assert_allclose(grey, np.arange(256), atol=1)
    assert (np.asarray(loaded)[..., 0] == np.asarray(loaded)[..., 2]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
    ],
)
def test_32_bit_greys_are_read_by_their_range(values: np.ndarray, expected: list[int]):
    assert Image.fromarray(values).mode in ("I", "F")
    assert np.asarray(load_image(Image.fromarray(values)))[0, :, 0].tolist() == expected
    assert np.asarray(load_image(values))[0, :, 0].tolist() == expected


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        assert np.abs(np.subtract(load_image(content).getpixel((2, 2)), (255, 0, 0))).max() < 4, format


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_honoured(format: str, orientation: int):
    upright = quarters()
    # What a camera held that way stores: the inverse of what a viewer has to do
    stored = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, format, exif=exif, **({"quality": 95} if format in ("JPEG", "WEBP") else {}))
    picture = load_image(content)
    assert distance(picture, upright) < 8
    assert load_image(picture).tobytes() == picture.tobytes()  # not turned again
    assert distance(load_image(content, target_size=(12, 16)).resize((64, 48)), upright) < 20


def test_damaged_exif_leaves_the_picture():
    content = encoded(quarters(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12broken")
    assert load_image(content).size == (64, 48)


def test_large_jpeg_is_decoded_small_but_not_below_what_is_needed():
    content = encoded(quarters(1600, 1200), "JPEG")
    assert load_image(content).size == (1600, 1200)
    assert load_image(content, target_size=(150, 150)).size == (200, 150)
    assert load_image(content, target_size=(224, 224)).size == (400, 300)
    assert load_image(content, target_size=(301, 301)).size == (800, 600)
    assert load_image(content, target_size=(1000, 10)).size == (1600, 1200)
    small = resize_image(load_image(content, target_size=(96, 96)), (96, 96))
    assert distance(small, resize_image(quarters(1600, 1200), (96, 96))) < 2


def test_picture_given_as_pil_is_not_changed():
    image = Image.open(BytesIO(encoded(quarters(1600, 1200), "JPEG")))
    load_image(image, target_size=(32, 32))
    assert image.size == (1600, 1200)


def test_squash_keeps_everything_and_crop_keeps_the_middle():
    stripes = Image.new("RGB", (90, 30), "red")
    stripes.paste("green", (30, 0, 60, 30))
    stripes.paste("blue", (60, 0, 90, 30))
    squashed = resize_image(stripes, (15, 15))
    assert squashed.size == (15, 15)
    assert [squashed.getpixel((x, 7)) for x in (1, 7, 13)] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    cropped = resize_image(stripes, (15, 15), "crop")
    assert [cropped.getpixel((x, 7)) for x in (2, 7, 12)] == [(0, 128, 0)] * 3
    assert resize_image(stripes.rotate(90, expand=True), (10, 20), "crop").size == (20, 10)


@pytest.mark.parametrize("size", [(7, 3), (3, 7), (224, 224), (641, 479)])
def test_crop_works_for_odd_sizes(size: tuple[int, int]):
    for width, height in ((1, 1), (5, 1000), (1023, 767)):
        assert resize_image(Image.new("RGB", (width, height)), size, "crop").size == size[::-1]


def test_crop_equals_short_side_then_centre_crop():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))
    reference = image.resize((50, 30), Image.Resampling.BICUBIC).crop((10, 0, 40, 30))
    assert distance(resize_image(image, (30, 30), "crop"), reference) < 1e-9


def test_write_normalized_is_the_usual_formula():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    out = np.empty((3, 5, 7), np.float32)
    write_normalized(image, out, *normalization(mean, std, 1 / 255))
    expected = (np.asarray(image).astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(out, expected.transpose(2, 0, 1), atol=2e-6)
    write_normalized(image, out, *normalization(None, None, None))
    np.testing.assert_array_equal(out, np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("threads", [1, 2, 9])
@pytest.mark.parametrize("do_resize", [True, False])
def test_images_are_the_same_however_many_threads_read_them(tmp_path: Path, threads: int, do_resize: bool):
    images = [encoded(Image.new("RGB", (40, 30), (60 * shade, 0, 0))) for shade in range(4)]
    (tmp_path / "photo.png").write_bytes(images[3])
    settings = {
        **{"do_resize": do_resize, "size": {"height": 8, "width": 8}, "resize_mode": "squash", "resample": 3},
        **{"do_normalize": False, "image_mean": None, "image_std": None, "do_rescale": False, "rescale_factor": None},
    }
    found = images_to_pixel_values([*images[:3], tmp_path / "photo.png"], settings, threads=threads)
    assert found[:, 0, 0, 0].tolist() == [0, 60, 120, 180]
    assert found.shape == (4, 3, *((8, 8) if do_resize else (30, 40)))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png"):
        images_to_pixel_values([images[0], images[1], bad, b""], settings, threads=threads)


URL = "http://localhost/photo.png"


@pytest.mark.parametrize(
    ("given", "readers"),
    [
        ([b"file", "file.png"], 2),
        ([{"bytes": b"file", "path": URL}, {"bytes": None, "path": "file.png"}], 2),
        ([quarters(), quarters()], 1),
        (["file.png", URL], 1),
        ([{"path": URL}, {"path": URL}], 1),
        ({1: "file.png", 2: "file.png"}.values(), 1),
    ],
    ids=["files", "dicts", "pictures", "URLs", "dicts of URLs", "no list"],
)
def test_threads_read_files_alone(given: list, readers: int, monkeypatch: pytest.MonkeyPatch):
    seen: set[str] = set()
    both = threading.Barrier(readers, timeout=30)

    def watched(image, settings, name=None):
        seen.add(threading.current_thread().name)
        both.wait()
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(image_loading, "load_resized_image", watched)
    assert len(images_to_pixel_values(given, FusionCaptionerImageProcessor(size=8).to_dict(), threads=2)) == 2
    assert len(seen) == readers


def test_a_thread_that_outlives_the_program_reads_on(tmp_path: Path):
    quarters().save(tmp_path / "photo.png")
    program = """
import sys, threading
from fusion_captioner.image_loading import images_to_pixel_values
settings = {"do_resize": True, "size": {"height": 8, "width": 8}, "resize_mode": "squash", "resample": 3}
settings |= {"do_normalize": False, "do_rescale": False}
def read():
    threading.main_thread().join()
    print(images_to_pixel_values(sys.argv[1:] * 2, settings, threads=2).shape)
threading.Thread(target=read).start()
"""
    words = [sys.executable, "-c", program, str(tmp_path / "photo.png")]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "(2, 3, 8, 8)\n"


def broken_files() -> dict[str, bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    files = {f"truncated.{format}": encoded(noise, format)[:3000] for format in ("jpeg", "png", "webp", "tiff", "gif")}
    return files | {
        "empty.jpg": b"",
        "text.jpg": b"this is a shopping list\n" * 20,
        "page.png": b"<!doctype html><html></html>",
        "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        "garbage.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    }


@pytest.mark.parametrize("file_name", list(broken_files()))
def test_broken_file_gives_one_line_with_its_name(tmp_path: Path, file_name: str):
    path = tmp_path / file_name
    path.write_bytes(broken_files()[file_name])
    for source, name in ((path, str(path)), ({"path": "shard/7.jpg", "bytes": path.read_bytes()}, "shard/7.jpg")):
        with pytest.raises(ValueError) as info:
            load_image(source, target_size=(32, 32))
        assert str(info.value).startswith(f"{name}: ")
        assert "\n" not in str(info.value)


def test_empty_file_is_called_empty(tmp_path: Path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"empty.jpg: the file is empty \(0 bytes\)"):
        load_image(tmp_path / "empty.jpg")


def test_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="400000000 pixels"):
        load_image(png_header(20_000, 20_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as many programs do
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"20000x20000 pixels are too many \(the limit is 268 megapixels\)"):
        load_image(png_header(20_000, 20_000))


@pytest.mark.filterwarnings("error")
def test_image_between_the_warning_and_the_limit_is_no_news(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_decoding, "MAX_DECODED_BYTES", 2**30)
    with pytest.raises(ValueError, match="a damaged image"):  # it is decoded, and has no pixels
        load_image(png_header(12_000, 9_000))


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"^nowhere/photo\.jpg: no such file$"):
        load_image("nowhere/photo.jpg")
    with pytest.raises(IsADirectoryError, match="a folder, not an image"):
        load_image(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be opened"):
        load_image(tmp_path / "file" / "photo.jpg")
    with pytest.raises(ValueError, match="not the name of a file"):
        load_image("photo\0.jpg")


def test_pipe_does_not_block(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="not a regular file"):
        load_image(tmp_path / "pipe.jpg")


def test_url_errors(server: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match=r"/nothing\.png: the server answers 404"):
        load_image(f"{server}/nothing.png")
    with pytest.raises(OSError, match="/broken: the server answers 500"):
        load_image(f"{server}/broken")
    with pytest.raises(ValueError, match=r"/page\.html: not an image"):
        load_image(f"{server}/page.html")
    with pytest.raises(OSError, match="cannot be"):
        load_image("http://127.0.0.1:1/photo.jpg")
    with pytest.raises(OSError, match="cannot be"):
        load_image("http://[half/photo.jpg")
    monkeypatch.setattr(image_downloads, "MAX_DOWNLOAD_BYTES", 10)
    with pytest.raises(ValueError, match="more than 0 MiB"):
        load_image(f"{server}/quarters.png")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "a NoneType is no image"),
        (7, "a int is no image"),
        ({"path": None, "bytes": None}, 'neither "path" nor "bytes"'),
        ("data:image/png,abc", "must be of the form"),
        ("data:image/png;base64,a", "not base64"),
        (np.zeros((5, 5, 7), np.uint8), r"shape \(5, 5, 7\) is no image"),
        (np.zeros((0, 4, 3), np.uint8), "is no image"),
        (np.zeros(5, np.uint8), "is no image"),
        (np.full((4, 4, 3), -2.1), "values from -2.1 to -2.1"),
        (np.full((4, 4), np.nan), "values from nan"),
        (np.full((4, 4), 70_000), "values from 70000"),
        (np.full((4, 4), -1), "values from -1"),
        (np.full((4, 4), "x"), "are no pixels"),
    ],
)
def test_what_is_no_image_is_refused(source: object, message: str):
    with pytest.raises(ValueError, match=message):
        load_image(source)


def test_name_replaces_the_description():
    with pytest.raises(ValueError, match=r"^images\[3\]: "):
        load_image(b"", name="images[3]")


@pytest.mark.real_data
def test_real_photo_by_draft_looks_like_the_full_decode(real_data: Path):
    path = sorted((real_data / "flickr8k" / "images").glob("*.jpg"))[0]
    photo = Image.open(path).convert("RGB")
    large = encoded(photo.resize((photo.width * 5, photo.height * 5), Image.Resampling.BICUBIC), "JPEG", quality=90)
    full = resize_image(load_image(large), (224, 224))
    draft = resize_image(load_image(large, target_size=(224, 224)), (224, 224))
    assert distance(draft, full) < 2
    assert distance(load_image(path, target_size=(224, 224)), photo) == 0

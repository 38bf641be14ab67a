"""`caption` as people want captions: tables, caption files, trigger words, alt text, descriptions inside photos."""

import csv
import errno
import io
import json
import os
import sys
from pathlib import Path

import pytest
from fake_captioner import FakeCaptioner
from PIL import Image

from fusion_captioner.cli import main
from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.inference import captioner as captioners
from fusion_captioner.inference.caption_outputs import Sidecars
from fusion_captioner.inference.caption_texts import framed, shortened


@pytest.fixture
def captioner(monkeypatch: pytest.MonkeyPatch) -> FakeCaptioner:
    captioner = FakeCaptioner()
    monkeypatch.setattr(captioners, "load_on_runtime", lambda *arguments, **settings: captioner)
    return captioner


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """`0.png` to `3.png`, which are captioned `red 0` to `red 3`."""
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(4):
        picture(folder / f"{number}.png", number)
    return folder


def picture(path: Path, red: int) -> Path:
    Image.new("RGB", (8, 8), (red, 0, 0)).save(path)
    return path


def caption(*flags: object, rank: int | None = None, processes: int = 1) -> int:
    with pytest.MonkeyPatch.context() as patch:
        if rank is not None:
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", str(processes))
        return main(["caption", "--model", "fake", "--batch-size", "2", *map(str, flags)])


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fusion-captioner: ")]


def sidecars(album: Path, ending: str = ".txt") -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(album.glob(f"*{ending}"))}


ALL = {f"{number}.txt": f"red {number}\n" for number in range(4)}


def test_a_csv_table_trains(album: Path, captioner: FakeCaptioner, capsys: pytest.CaptureFixture[str]) -> None:
    out = album / "captions.csv"
    assert caption(album, "--num-captions", "2", "--prefix", 'a "big", bad', "--out", out) == 0
    rows = list(csv.reader(io.StringIO(out.read_text())))
    assert rows[:2] == [
        ["image", "caption_0", "caption_1"],
        [str(album / "0.png"), 'a "big", bad red 0', 'a "big", bad red 0, 1'],
    ]
    assert len(rows) == 5
    capsys.readouterr()
    assert caption(album / "1.png", "--format", "csv") == 0
    printed = capsys.readouterr().out
    assert printed == f"image,caption\n{album}/1.png,red 1\n"
    (album / "captions.csv").write_text(printed.replace(f"{album}/", ""))
    rows = load_caption_dataset(album, cache_dir=str(album / "cache"))["train"]
    assert rows["captions"][:] == [["red 1"]]


def test_text_has_names_tabs_and_captions(album: Path, captioner: FakeCaptioner, capsys) -> None:
    picture(album / "a\tb.png", 9)
    assert caption(album, "--format", "txt", "--num-captions", "2") == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[1] == f"{album}/1.png\tred 1\tred 1, 1"
    assert "has a tab or a line break" in output.err


@pytest.mark.parametrize("name", ["captions.csv", "captions.txt", "captions.jsonl", "captions"])
def test_every_format_goes_on_where_it_was_and_is_merged(
    name: str, album: Path, captioner: FakeCaptioner, tmp_path: Path
) -> None:
    out, whole = tmp_path / name, tmp_path / f"whole-{name}"
    if not name.endswith(".txt"):
        for odd in ('with "quotes"\nand a break, and \udce9.png', "with\rreturns\r.png"):
            (album / odd).write_bytes((album / "3.png").read_bytes())
    assert caption(album, "--out", whole) == 0
    assert caption(album, "--out", out, rank=1, processes=2) == 0
    part = tmp_path / f"{name}.part-1-of-2"
    part.write_bytes(part.read_bytes()[:-3])  # what a full disk leaves
    captioner.batches.clear()
    assert caption(album, "--out", out, "--resume", rank=1, processes=2) == 0
    assert captioner.captions == ["red 3"]
    assert caption(album, "--out", out, rank=0, processes=2) == 0
    assert out.read_bytes() == whole.read_bytes()
    captioner.batches.clear()
    assert caption(album, "--out", out, "--resume") == 0 and captioner.batches == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,caption\na.png,red\nb.png\n", "line 3 has 1 values, and 2 columns"),
        ('image,caption\na.png,"red\nb.png,red\n', "line 2 has a quote that is not closed"),
        ("image;caption\na.png;red\n", "line 1 has the columns 'image;caption', and this run writes 'image,caption'"),
        ('{"image": "a.png", "caption": "red"}\n', "line 1 has the columns"),
        ("image,caption_0,caption_1\n", "line 1 has the columns"),
        ("notes", "line 1 is no caption"),
    ],
)
def test_a_table_of_something_else_stays(
    content: str, words: str, album: Path, captioner: FakeCaptioner, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "captions.csv"
    out.write_text(content)
    assert caption(album, "--out", out, "--resume") == 2
    (line,) = notes(capsys)
    assert str(out) in line and words in line
    assert out.read_text() == content


def test_caption_files_next_to_photos(album: Path, captioner: FakeCaptioner, capsys) -> None:
    (album / "1.txt").write_text("edited by a person\n")
    assert caption(album, "--sidecar", "txt") == 0
    output = capsys.readouterr()
    assert sidecars(album) == ALL | {"1.txt": "edited by a person\n"}
    assert len(output.out.splitlines()) == 3
    assert "1 of 4 images had captions already, which stay; --overwrite replaces them" in output.err
    assert captioner.captions == ["red 0", "red 2", "red 3"]

    captioner.batches.clear()
    assert caption(album, "--sidecar", ".txt") == 0
    assert captioner.batches == [] and "4 of 4 images had captions already" in notes(capsys)[0]
    assert caption(album, "--sidecar", ".txt", "--overwrite", "--num-captions", "2") == 0
    assert sidecars(album)["1.txt"] == "red 1\nred 1, 1\n"
    assert notes(capsys) == []
    rows = load_caption_dataset(album, cache_dir=str(album.parent / "cache"))["train"]
    assert rows["captions"][1] == ["red 1", "red 1, 1"]


def test_what_is_kept_is_counted_once_for_several_processes(album: Path, captioner: FakeCaptioner, capsys) -> None:
    for name in ("0.txt", "1.txt", "2.txt"):
        (album / name).write_text("mine\n")
    out = album / "captions.jsonl"
    for rank in (0, 1):
        assert caption(album, "--sidecar", ".txt", "--out", out, rank=rank, processes=2) == 0
    (line,) = notes(capsys)
    assert "3 of 4 images had captions already" in line
    assert sidecars(album) == ALL | dict.fromkeys(("0.txt", "1.txt", "2.txt"), "mine\n")
    assert len(out.read_text().splitlines()) == 4


def test_resume_writes_the_caption_files_that_are_missing(album: Path, captioner: FakeCaptioner) -> None:
    out = album / "captions.csv"
    assert caption(album, "--prefix", "ohwx", "--out", out) == 0
    (album / "2.txt").write_text("edited\n")
    captioner.batches.clear()
    assert caption(album, "--prefix", "ohwx", "--out", out, "--resume", "--sidecar", ".txt", "--overwrite") == 0
    assert captioner.batches == []
    assert sidecars(album) == {name: f"ohwx {text}" for name, text in ALL.items()} | {"2.txt": "edited\n"}


def test_two_photos_with_one_caption_file(album: Path, captioner: FakeCaptioner, capsys) -> None:
    picture(album / "1.jpg", 200)
    assert caption(album, "--sidecar", ".txt") == 1
    first, second, count = notes(capsys)
    for line, name, other in ((first, "1.jpg", "1.png"), (second, "1.png", "1.jpg")):
        assert f"{album}/{name}: shares the caption file 1.txt with {album}/{other}; rename one of them" in line
    assert "2 of 5 images could not be captioned" in count
    assert sorted(sidecars(album)) == ["0.txt", "2.txt", "3.txt"]
    captioner.batches.clear()
    assert caption(album / "1.jpg", album / "1.png", "--sidecar", ".txt") == 2
    assert captioner.batches == [] and len(sidecars(album)) == 3


def test_no_caption_file_is_written_through_a_link(album: Path, captioner: FakeCaptioner, capsys) -> None:
    outside = album.parent / "outside.txt"
    outside.write_text("mine\n")
    (album / "1.txt").symlink_to(outside)
    (album / "2.txt").symlink_to(album.parent / "new.txt")
    assert caption(album, "--sidecar", ".txt", "--overwrite") == 1
    for line, name in zip(notes(capsys), ("1.txt", "2.txt"), strict=False):
        assert f"{album / name}: is a link, through which nothing is written; move it" in line
    assert outside.read_text() == "mine\n" and not (album.parent / "new.txt").exists()
    assert (album / "0.txt").read_text() == "red 0\n" and (album / "1.txt").is_symlink()


def test_a_photo_that_is_named_twice_gets_one_caption_file(album: Path, captioner: FakeCaptioner, capsys) -> None:
    link = album.parent / "link"
    link.symlink_to(album)
    assert caption(album, album / "1.png", link / "2.png", "--sidecar", ".txt") == 0
    assert notes(capsys) == ["fusion-captioner: 2 of 6 images are named more than once; each is captioned once"]
    assert sidecars(album) == ALL and captioner.captions == [text.strip() for text in ALL.values()]


def test_a_photo_that_is_named_twice_gets_two_rows(album: Path, captioner: FakeCaptioner, capsys) -> None:
    assert caption(album / "1.png", album / ".." / "album" / "1.png") == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 2
    assert "1 of 2 images are named more than once; each is captioned as often as it is named" in output.err


def test_a_full_disk_loses_nothing(
    album: Path, captioner: FakeCaptioner, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, iter(range(9))

    def full(descriptor: int) -> None:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert caption(album, "--sidecar", ".txt") == 2
    (line,) = notes(capsys)
    assert f"{album}/2.png: its caption cannot be written (No space left on device), and 2 were before" in line
    assert sorted(path.name for path in album.iterdir()) == ["0.png", "0.txt", "1.png", "1.txt", "2.png", "3.png"]
    assert caption(album, "--sidecar", ".txt") == 0
    assert sidecars(album) == ALL


def test_resume_with_other_words_says_what_stays(album: Path, captioner: FakeCaptioner, capsys) -> None:
    out = album.parent / "captions.csv"
    assert caption(album, "--out", out, "--prefix", "ohwx,") == 0
    table = out.read_text()
    assert caption(album, "--out", out, "--resume", "--prefix", "ohwx,", "--sidecar", ".txt") == 0
    assert notes(capsys) == []
    for flags in (["--prefix", "sks"], ["--suffix", "!"], ["--max-chars", "5"]):
        assert caption(album, "--out", out, "--resume", *flags) == 0
        assert "4 captions of --out do not have this --prefix" in notes(capsys)[0]
    assert out.read_text() == table


def test_a_folder_that_cannot_be_written_to(
    album: Path, captioner: FakeCaptioner, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(descriptor: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "fsync", denied)
    assert caption(album / "1.png", "--sidecar", ".txt") == 2
    assert "1.txt: cannot be written (Permission denied); make the folder writable" in capsys.readouterr().err


def test_a_caption_file_that_cannot_be_written(album: Path, captioner: FakeCaptioner, capsys) -> None:
    (album / "1.txt").mkdir()
    assert caption(album, "--sidecar", ".txt", "--overwrite") == 1
    output = capsys.readouterr()
    assert f"{album}/1.txt: cannot be written" in output.err
    assert len(output.out.splitlines()) == 4
    assert [(album / f"{number}.txt").read_text() for number in (0, 2, 3)] == ["red 0\n", "red 2\n", "red 3\n"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sidecar", ".JPG"], "is an ending of images"),
        (["--sidecar", "sub/x"], "must be the ending"),
        (["--sidecar", "."], "must be the ending"),
        (["--overwrite"], "--overwrite is for --sidecar and --write-metadata"),
        (["--top-p", "0.9"], "--top-p (0.9) is for --sample"),
        (["--sample", "--top-p", "1.5"], "--top-p (1.5) must be above 0 and at most 1"),
        (["--min-new-tokens", "31"], "--min-new-tokens (31) must be 0 to --max-new-tokens (30)"),
        (["--repetition-penalty", "0"], "--repetition-penalty (0.0) must be 0.01 to 100"),
        (["--no-repeat-ngram", "0"], "--no-repeat-ngram (0) must be at least 1"),
        (["--max-chars", "0"], "--max-chars (0) must be at least 1"),
        (["--max-chars", "9", "--prefix", "trigger,"], "leaves no room for a caption: --prefix and --suffix take 9"),
        (["--prefix", "a\nb"], "must be words in one line"),
        (["--from-file", "/nowhere.txt"], "--from-file (/nowhere.txt): cannot be read (No such file"),
        (["--from-file", "/"], "--from-file (/): cannot be read (Is a directory); name a file with an image per line"),
    ],
)
def test_flags_that_cannot_be(flags: list[str], words: str, album: Path, capsys) -> None:
    assert caption(album, *flags) == 2
    (line,) = notes(capsys)
    assert words in line


def test_no_image_is_named(capsys) -> None:
    assert caption("--from-file", "-", "--out", "x", rank=0, processes=2) == 2
    assert "--from-file - cannot be shared by 2 processes" in notes(capsys)[0]
    assert caption() == 2
    assert "no IMAGE is given; name files, folders or URLs" in notes(capsys)[0]


def test_a_caption_file_replaces_neither_the_list_nor_the_output(
    album: Path, captioner: FakeCaptioner, capsys
) -> None:
    names = album / "0.txt"
    names.write_text("\n".join(str(album / f"{number}.png") for number in range(4)))
    (album / "plain").write_bytes((album / "3.png").read_bytes())
    command = ["--from-file", names, "--sidecar", ".txt", "--overwrite", "--out", album / "1.txt"]
    assert caption(*command) == 1
    assert [f"{number}.png: its caption file would replace" in line for number, line in enumerate(notes(capsys)[:2])]
    assert names.read_text().endswith("3.png") and "\t" in (album / "1.txt").read_text()
    assert caption(album / "plain", "--sidecar", ".txt") == 0
    assert (album / "plain.txt").read_text() == "red 3\n"


def test_a_list_in_utf_16(album: Path, captioner: FakeCaptioner, capsys) -> None:
    # split at its zeros, it would be names of one character each, `/` among them
    listed = album.parent / "list"
    for encoding in ("utf-16-le", "utf-16-be"):
        listed.write_bytes(f"\ufeff{album / '3.png'}\r\n{album / '0.png'}\r\n".encode(encoding))
        assert caption("--from-file", listed) == 0
        rows = capsys.readouterr().out.splitlines()
        assert [Path(json.loads(row)["image"]).name for row in rows] == ["3.png", "0.png"]
    listed.write_bytes(listed.read_bytes()[:-1])
    assert caption("--from-file", listed) == 2
    assert f"--from-file ({listed}): is no UTF-16 text" in notes(capsys)[0]


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_names_from_a_list(
    separator: str, album: Path, captioner: FakeCaptioner, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(album / "3.png"), "", str(album / "missing.png"), str(album / "0.png")]
    content = separator.join(names).encode()
    listed = album.parent / "list"
    listed.write_bytes(b"\xef\xbb\xbf" * (separator == "\n") + content)
    assert caption("--from-file", listed, album / "1.png") == 1
    output = capsys.readouterr()
    assert [Path(json.loads(line)["image"]).name for line in output.out.splitlines()] == ["1.png", "3.png", "0.png"]
    assert "missing.png: no such file or folder" in output.err and "1 of 4 images could not" in output.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert caption("--from-file", "-") == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    listed.write_text("\n \n")
    assert caption("--from-file", listed) == 2
    assert "names no images" in notes(capsys)[0]


def test_a_missing_path_among_good_ones(album: Path, captioner: FakeCaptioner, capsys) -> None:
    empty = album.parent / "empty"
    empty.mkdir()
    assert caption("nowhere.png", album, empty, "--out", album / "out.jsonl") == 1
    missing, no_images, count = notes(capsys)
    assert "nowhere.png: no such file" in missing and "holds no images" in no_images
    assert "2 of 6 images could not be captioned" in count
    assert len((album / "out.jsonl").read_text().splitlines()) == 4


def test_a_source_that_is_no_photo_needs_no_caption_file(
    album: Path, captioner: FakeCaptioner, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (album / "2").mkdir()
    (album.parent / "empty").mkdir()
    monkeypatch.chdir(album.parent / "empty")
    photos, others = ("../album/1.png", "../album/2.png"), (".", "../album/2", "../album/1.jpg")
    assert caption(*others, *photos, "--sidecar", ".txt") == 1
    here, folder, missing, count = notes(capsys)
    assert "the folder holds no images" in here and "the folder holds no images" in folder
    assert "1.jpg: no such file" in missing and "3 of 5 images could not be captioned" in count
    assert sidecars(album) == {"1.txt": "red 1\n", "2.txt": "red 2\n"}
    assert caption("", "../album/3.png", "--sidecar", ".txt") == 1
    assert "is empty; name a file" in notes(capsys)[0] and "3.txt" in sidecars(album)
    assert Sidecars(".txt").problems(["/"]) == {}


def test_settings_reach_the_captioner(album: Path, captioner: FakeCaptioner) -> None:
    flags = [
        "--min-new-tokens",
        "3",
        "--repetition-penalty",
        "1.2",
        "--no-repeat-ngram",
        "2",
        "--sample",
        "--top-p",
        "0.9",
    ]
    assert caption(album, *flags, "--bad-words", "a photo of, blurry", "dog") == 0
    expected = {"min_new_tokens": 3, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "top_p": 0.9}
    expected |= {"bad_words": ["a photo of", "blurry", "dog"], "do_sample": True, "num_beams": 1}
    assert {name: captioner.settings[name] for name in expected} == expected


def test_alt_text_ends_at_a_word(album: Path, captioner: FakeCaptioner, capsys) -> None:
    assert caption(album / "1.png", "--num-captions", "2", "--max-chars", "14", "--suffix", ", photo") == 0
    assert json.loads(capsys.readouterr().out)["captions"] == ["red 1, photo", "red 1, photo"]
    assert caption(album, "--max-chars", "2", "--sidecar", ".txt") == 2
    assert "0.png: no word of its caption fits in --max-chars (2)" in notes(capsys)[0]
    assert sidecars(album) == {}


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("a brown dog runs", 16, "a brown dog runs"),
        ("a brown dog runs", 15, "a brown dog"),
        ("a brown dog runs", 11, "a brown dog"),
        ("a brown dog runs", 10, "a brown"),
        ("a dog, running", 7, "a dog"),
        ("two-wheeled cart", 13, "two-wheeled"),
        ("a dog, on the beach", 14, "a dog"),
        ("the man with a hat", 14, "the man"),
        ("a dog on the", 12, "a dog on the"),
        ("the of beach", 8, ""),
        ("a dog", 3, ""),
        ("skateboarder", 5, ""),
        ("un café-théâtre", 4, "un"),
        ("cafe\u0301 au lait", 4, ""),
        ("一只棕色的狗在雪地里跑", 5, "一只棕色的"),
        ("一只狗，在跑", 4, "一只狗"),
        ("犬が走る cat", 6, "犬が走る"),
        ("ก\u0e33ลังวิ\u0e48ง", 1, ""),
        ("สุนั\u0e02", 2, "สุ"),
        ("개가 눈 속을", 4, "개가 눈"),
    ],
)
def test_texts_are_cut_between_words(text: str, limit: int, expected: str) -> None:
    assert shortened(text, limit) == expected and len(expected) <= limit


@pytest.mark.parametrize(
    ("prefix", "suffix", "expected"),
    [
        ("ohwx", "", "ohwx a dog"),
        ("ohwx, ", ", photo", "ohwx, a dog, photo"),
        ("ohwx,", "in style", "ohwx, a dog in style"),
        ("", ".", "a dog."),
        ("", "", "a dog"),
    ],
)
def test_words_around_captions(prefix: str, suffix: str, expected: str) -> None:
    assert framed("a dog", prefix, suffix) == expected


@pytest.mark.parametrize("format", ["csv", "txt"])
def test_a_table_that_is_printed_into_a_pipe_is_utf_8(
    captioner: FakeCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    photo = picture(tmp_path / "\u72d7.png", 1)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert caption(photo, "--format", format, "--prefix", "caf\u00e9 ") == 0
    text = written.getvalue().decode("utf-8")
    assert "caf\u00e9 red 1" in text and "\\" not in text.replace(str(tmp_path), "")
    assert str(photo) in text

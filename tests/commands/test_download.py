"""`fusion-captioner download`, from a server on this machine with a miniature of the published files."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import datasets
import pytest
from PIL import Image

from fusion_captioner.cli import main
from fusion_captioner.commands import download
from fusion_captioner.data import file_downloads, published
from fusion_captioner.data.caption_datasets import load_caption_dataset


def archive(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with ZipFile(content, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return content.getvalue()


def jpeg(number: int) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((64, 48), 10 + number).convert("RGB").save(content, "JPEG", quality=95)
    return content.getvalue()


def coco(split: str, numbers: list[int]) -> bytes:
    images = [{"id": number, "file_name": f"{number:012}.jpg"} for number in numbers]
    annotations = [{"image_id": number, "caption": f"a picture of {number}"} for number in numbers for _ in range(5)]
    return json.dumps({"images": images, "annotations": annotations}).encode()


def karpathy(name: str) -> bytes:
    image = {"filename": "1.jpg", "split": "train", "cocoid": 1, "sentences": [{"raw": f"a picture of {name}"}]}
    return json.dumps({"images": [image]}).encode()


FILES = {
    "/annotations_trainval2017.zip": archive(
        {
            "annotations/captions_train2017.json": coco("train2017", [1, 2, 3]),
            "annotations/captions_val2017.json": coco("val2017", [4, 5]),
            "annotations/instances_val2017.json": b"{}" * 1000,
        }
    ),
    "/train2017.zip": archive({"train2017/": b"", **{f"train2017/{n:012}.jpg": jpeg(n) for n in (1, 2, 3)}}),
    "/val2017.zip": archive({f"val2017/{n:012}.jpg": jpeg(n) for n in (4, 5)}),
    "/caption_datasets.zip": archive({f"dataset_{n}.json": karpathy(n) for n in ("coco", "flickr8k", "flickr30k")}),
}


class Server(ThreadingHTTPServer):
    """Serves `files`; `break_after` ends each answer after so many bytes, `ranges` is whether parts can be had,
    `lengths` whether answers tell theirs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.break_after: int | None = None
        self.ranges = True
        self.lengths = True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.break_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and the table of data sets with its addresses, sizes and checksums."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def here(part: published.PublishedFile) -> published.PublishedFile:
        content = FILES["/" + part.name]
        kind = part.checksum.partition(":")[0]
        digest = f"{kind}:{hashlib.new(kind, content).hexdigest()}"
        url = f"{server.address}/{part.name}"
        return replace(part, url=url, size=len(content), unpacked_size=len(content), checksum=digest)

    table = {
        name: replace(
            dataset, parts={key: here(part) for key, part in dataset.parts.items() if f"/{part.name}" in FILES}
        )
        for name, dataset in published.DATASETS.items()
    }
    monkeypatch.setattr(published, "DATASETS", table)
    monkeypatch.setattr(file_downloads.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", os.devnull)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data" / "coco"


def fetch(name: str, out: Path, *flags: str) -> int:
    return main(["download", name, "--out", str(out), "--yes", *flags])


def note(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fusion-captioner: ")]
    return line


def without_checksum(monkeypatch: pytest.MonkeyPatch, name: str, part: str) -> None:
    dataset = published.DATASETS[name]
    parts = dataset.parts | {part: replace(dataset.parts[part], checksum=None)}
    monkeypatch.setitem(published.DATASETS, name, replace(dataset, parts=parts))


def test_coco_is_fetched_and_read(server: Server, out: Path, tmp_path: Path, capsys) -> None:
    assert fetch("coco", out) == 0
    output = capsys.readouterr().out
    assert "CC BY 4.0" in output and "Flickr" in output and f"--data.source {out}" in output
    assert [path for path, _ in server.asked] == ["/annotations_trainval2017.zip", "/val2017.zip", "/train2017.zip"]
    assert sorted(os.listdir(out)) == ["annotations", "downloads.json", "train2017", "val2017"]
    assert sorted(os.listdir(out / "annotations")) == ["captions_train2017.json", "captions_val2017.json"]
    loaded = load_caption_dataset(out, cache_dir=str(tmp_path / "cache"))
    assert {split: rows["image_id"][:] for split, rows in loaded.items()} == {
        "train": ["1", "2", "3"],
        "val": ["4", "5"],
    }
    record = json.loads((out / "downloads.json").read_text())
    assert record["val2017.zip"]["checksum"] == f"md5:{hashlib.md5(FILES['/val2017.zip']).hexdigest()}"

    server.asked.clear()
    assert fetch("coco", out) == 0
    assert server.asked == [] and "all of it is in" in capsys.readouterr().out
    (out / "val2017" / f"{4:012}.jpg").unlink()
    assert fetch("coco", out) == 0
    assert [path for path, _ in server.asked] == ["/val2017.zip"]


@pytest.mark.parametrize(
    ("name", "file"), [("karpathy", "dataset_coco.json"), ("flickr30k-annotations", "dataset_flickr30k.json")]
)
def test_of_karpathys_files_the_one_is_unpacked(name: str, file: str, server: Server, out: Path, capsys) -> None:
    assert fetch(name, out, "--keep-archives") == 0
    assert sorted(os.listdir(out)) == ["caption_datasets.zip", file, "downloads.json"]
    assert fetch(name, out.parent / "other") == 0
    assert sorted(os.listdir(out.parent / "other")) == [file, "downloads.json"]


def test_sizes_and_licence_are_shown_and_nothing_is_fetched_without_agreement(
    server: Server, out: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["download", "coco", "--out", str(out)]) == 2
    output = capsys.readouterr()
    for words in ("COCO 2017: 118,287 photos", "licence: captions CC BY 4.0", "train2017", "to fetch: "):
        assert words in output.out
    assert "add --yes" in output.err and server.asked == [] and not out.exists()

    terminal = io.StringIO("no\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(["download", "coco", "--out", str(out)]) == 1
    assert "nothing was fetched" in note(capsys) and server.asked == [] and not out.exists()


def test_the_published_sizes_are_those_that_are_shown(capsys, tmp_path: Path) -> None:
    assert main(["download", "coco", "--out", str(tmp_path)]) == 2
    output = capsys.readouterr().out
    assert (
        "18.0 GiB" in output and "778 MiB" in output and "http://images.cocodataset.org/zips/train2017.zip" in output
    )
    for dataset in published.DATASETS.values():
        for part in dataset.parts.values():
            kind, _, digest = (part.checksum or "").partition(":")
            assert len(digest) == hashlib.new(kind).digest_size * 2


def test_a_broken_download_is_continued(server: Server, out: Path, capsys) -> None:
    size = len(FILES["/val2017.zip"])
    server.break_after = size // 3
    assert fetch("coco", out, "--only", "val2017") == 0
    starts = [int(asked[6:-1]) if asked else 0 for _, asked in server.asked]
    assert starts == [0, size // 3, 2 * (size // 3), 3 * (size // 3)][: len(starts)] and len(starts) >= 3

    server.asked.clear()
    shutil.rmtree(out)
    server.files["/val2017.zip"] = b""
    out.mkdir()
    (out / "val2017.zip.incomplete").write_bytes(FILES["/val2017.zip"][:100])
    server.break_after = 0
    server.files = dict(FILES)
    assert fetch("coco", out, "--only", "val2017") == 2
    line = note(capsys)
    assert f"100 of {size:,} bytes are there; repeat the command" in line
    assert len(server.asked) == 1 + len(file_downloads.PAUSES)
    server.break_after = None
    server.asked.clear()
    assert fetch("coco", out, "--only", "val2017") == 0
    assert server.asked == [("/val2017.zip", "bytes=100-")]
    assert len(os.listdir(out / "val2017")) == 2


def test_an_answer_without_length_that_breaks_off_is_not_asked_for_ever(server: Server, out: Path, capsys) -> None:
    server.lengths = server.ranges = False
    server.break_after = 100
    assert fetch("coco", out, "--only", "val2017") == 2
    assert "the answer ended before the file did; 100 of" in note(capsys)
    assert len(server.asked) == 2 + len(file_downloads.PAUSES)
    server.break_after = None
    assert fetch("coco", out, "--only", "val2017") == 0


def test_a_server_without_parts_sends_the_whole(server: Server, out: Path) -> None:
    server.ranges = False
    out.mkdir(parents=True)
    (out / "val2017.zip.incomplete").write_bytes(b"something else")
    assert fetch("coco", out, "--only", "val2017") == 0
    assert len(os.listdir(out / "val2017")) == 2


def test_another_checksum_is_named_and_fetched_anew(server: Server, out: Path, capsys) -> None:
    good = FILES["/val2017.zip"]
    server.files["/val2017.zip"] = good[:-1] + bytes([good[-1] ^ 1])
    assert fetch("coco", out, "--only", "val2017") == 2
    line = note(capsys)
    assert (
        f"{out}/val2017.zip: its checksum is md5:" in line
        and "was expected; it is kept as val2017.zip.damaged" in line
    )
    assert sorted(os.listdir(out)) == ["val2017.zip.damaged"]
    server.files = dict(FILES)
    assert fetch("coco", out, "--only", "val2017") == 0


def test_without_a_published_checksum_the_first_one_is_recorded(
    server: Server, out: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_checksum(monkeypatch, "coco", "val2017")
    good = FILES["/val2017.zip"]
    assert fetch("coco", out, "--only", "val2017") == 0
    record = json.loads((out / "downloads.json").read_text())["val2017.zip"]
    assert record["checksum"] == f"sha256:{hashlib.sha256(good).hexdigest()}" and not record["checksum_was_known"]
    shutil.rmtree(out / "val2017")
    server.files["/val2017.zip"] = good[:-1] + bytes([good[-1] ^ 1])
    assert fetch("coco", out, "--only", "val2017") == 2
    assert "its checksum is sha256:" in note(capsys)


def test_a_file_of_another_size_or_none(server: Server, out: Path, capsys) -> None:
    server.files["/val2017.zip"] += b"more"
    assert fetch("coco", out, "--only", "val2017") == 2
    assert "it is not the file that was published" in note(capsys)
    del server.files["/val2017.zip"]
    server.asked.clear()
    assert fetch("coco", out, "--only", "val2017") == 2
    assert "the server answers 404" in note(capsys) and len(server.asked) == 1
    assert fetch("coco", out, "--only", "val2014") == 2
    assert "--only (val2014) is no part of coco; there are annotations, val2017, train2017" in note(capsys)


def link(name: str) -> ZipInfo:
    info = ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "member",
    [
        "../outside.jpg",
        "/tmp/outside.jpg",
        "val2017/../../outside.jpg",
        "C:/outside.jpg",
        "..\\outside.jpg",
        link("val2017/a.jpg"),
    ],
    ids=str,
)
def test_a_member_that_leads_out_of_the_folder_is_refused(
    member: str | ZipInfo, server: Server, out: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    with ZipFile(content, "w") as opened:
        opened.writestr("val2017/good.jpg", b"good")
        opened.writestr(member, b"/etc")
    serve(server, content.getvalue(), monkeypatch)
    assert fetch("coco", out, "--only", "val2017") == 2
    assert "that leads out of the folder; nothing was unpacked" in note(capsys)
    assert sorted(os.listdir(out)) == ["downloads.json", "val2017.zip"] and os.listdir(out.parent) == ["coco"]


def serve(server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """`content` as val2017.zip, with its own size and without a known checksum."""
    server.files["/val2017.zip"] = content
    without_checksum(monkeypatch, "coco", "val2017")
    dataset = published.DATASETS["coco"]
    parts = dataset.parts | {"val2017": replace(dataset.parts["val2017"], size=len(content))}
    monkeypatch.setitem(published.DATASETS, "coco", replace(dataset, parts=parts))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no archive at all", "is damaged (File is not a zip file)"),
        (archive({"other/a.jpg": b"a"}), "has none of the files val2017/*.jpg"),
        (archive({"val2017/a.jpg": b"a" * 10**6}), "more than 50 times its size; refused"),
        (FILES["/val2017.zip"][:200] + b"xxxx" + FILES["/val2017.zip"][204:], "is damaged ("),
    ],
    ids=["text", "others", "bomb", "flipped"],
)
def test_archives_that_are_none(
    content: bytes, words: str, server: Server, out: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, content, monkeypatch)
    assert fetch("coco", out, "--only", "val2017") == 2
    assert words in note(capsys)
    assert not list(out.rglob("*.incomplete"))


def test_an_interruption_while_unpacking_is_continued(
    server: Server, out: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    copy = shutil.copyfileobj
    calls = iter(range(9))

    def full(*arguments: object) -> None:
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        assert fetch("coco", out, "--only", "train2017") == 2
    line = note(capsys)
    assert "train2017/000000000002.jpg: cannot be written (No space left on device)" in line and "goes on" in line
    assert os.listdir(out / "train2017") == ["000000000001.jpg"]
    server.asked.clear()
    assert fetch("coco", out, "--only", "train2017") == 0
    assert server.asked == [] and len(os.listdir(out / "train2017")) == 3


def test_a_disk_that_is_too_small_is_named_first(
    server: Server, out: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    assert fetch("coco", out) == 2
    assert "are needed, and 10 bytes are free" in note(capsys) and server.asked == []


def test_a_damaged_record(server: Server, out: Path, capsys) -> None:
    out.mkdir(parents=True)
    (out / "downloads.json").write_text("[")
    assert fetch("coco", out) == 2
    assert "downloads.json: is damaged" in note(capsys)

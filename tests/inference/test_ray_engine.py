"""Collections on a cluster: what is read, what is refused, and a worker that dies."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.cli import main
from fusion_captioner.inference.caption_formats import caption_format
from fusion_captioner.inference.ray_engine import (
    SHARE,
    Captioning,
    CaptionRows,
    ShareCaptioner,
    images_of,
    shares_of,
)

DEADLINE = 400  # seconds; a cluster on one machine starts in 10, if nothing else runs there


def jpeg(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((160, 120)).save(content := io.BytesIO(), "JPEG")
    return content.getvalue()


def write_archive(path: Path, images: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in images.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def read(*names: object) -> dict[str, object]:
    return {
        name: str(image) if isinstance(image, ValueError) else image
        for name, image in images_of([str(each) for each in names])
    }


def test_folders_are_divided_into_shares(tmp_path: Path):
    (tmp_path / "photos" / ".hidden").mkdir(parents=True)
    for number in range(SHARE + 1):
        (tmp_path / "photos" / f"{number:03}.jpg").write_bytes(jpeg())
    (tmp_path / "photos" / "a.parquet").write_bytes(b"")
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    shares, problems = shares_of([str(tmp_path / "photos"), str(tmp_path / "missing")])
    assert [len(share["names"]) for share in shares] == [SHARE, 1, 1]
    assert shares[-1]["names"] == [str(tmp_path / "photos" / "a.parquet")]
    assert len({share["start"] for share in shares}) == 3
    assert problems == [f"{tmp_path / 'missing'}: no such file or folder; check the path."]


def test_a_store_is_read_by_its_url():
    store = fsspec.filesystem("memory")
    for name in ("/bucket/a.jpg", "/bucket/deep/b.PNG", "/bucket/.c.jpg", "/bucket/list.txt", "/bucket/d.tar"):
        store.pipe_file(name, jpeg())
    shares, problems = shares_of(["memory://bucket", "memory://nowhere", "https://example.com/a.jpg", "nostore://a"])
    assert [share["names"] for share in shares] == [
        ["memory:///bucket/a.jpg", "memory:///bucket/deep/b.PNG"],
        ["memory:///bucket/d.tar"],
    ]
    assert read("memory:///bucket/a.jpg") == {"memory:///bucket/a.jpg": jpeg()}
    missing, url, unknown = problems
    assert "no such file" in missing and "no http(s) URLs" in url and "nostore" in unknown


def test_tables_hold_or_name_images_inside_their_folder(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    (tmp_path / "data" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "data" / "photo.jpg").write_bytes(jpeg())
    paths = [
        "photo.jpg",
        "../secret.jpg",
        str(tmp_path / "secret.jpg"),
        "link.jpg",
        "http://localhost/a.jpg",
        "s3://a/b.jpg",
    ]
    table = pyarrow.table({"file_name": [*paths, None]})
    pyarrow.parquet.write_table(table, tmp_path / "data" / "names.parquet")
    found = read(tmp_path / "data" / "names.parquet")
    assert found.pop("photo.jpg") == str(tmp_path / "data" / "photo.jpg")
    assert all("lies outside" in found.pop(path) for path in paths[1:4])
    assert "is a URL" in found.pop(paths[4]) and "neither a file nor" in found.pop(paths[5])
    assert [*found.values()] == [f"{tmp_path / 'data' / 'names.parquet'}#6: has no image"]

    images = [{"bytes": jpeg(1), "path": "one.jpg"}, {"bytes": jpeg(2), "path": None}]
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "image": images}), tmp_path / "images.parquet")
    assert read(tmp_path / "images.parquet") == {"one.jpg": jpeg(1), f"{tmp_path / 'images.parquet'}#1": jpeg(2)}


def test_tables_of_a_store_stay_in_their_folder():
    store = fsspec.filesystem("memory")
    store.pipe_file("/set/a.jpg", jpeg())
    store.pipe_file("/other.jpg", jpeg())
    with store.open("/set/names.parquet", "wb") as file:
        names = ["a.jpg", "../other.jpg", "/other.jpg", "memory://other.jpg", "b.jpg"]
        pyarrow.parquet.write_table(pyarrow.table({"image": names}), file)
    found = read("memory://set/names.parquet")
    assert found.pop("a.jpg") == jpeg()
    assert "cannot be read" in found.pop("b.jpg")
    assert len(found) == 3 and all("lies outside" in problem for problem in found.values())


def test_archives_give_their_photos(tmp_path: Path):
    write_archive(tmp_path / "a.tar", {"0.jpg": jpeg(), "0.txt": b"a dog", "0.json": b"{}", "1.png": jpeg(1)})
    assert read(tmp_path / "a.tar") == {"0.jpg": jpeg(), "1.png": jpeg(1)}
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    found = read(tmp_path / "b.tar", tmp_path / "a.tar")
    assert "cannot be read" in str(found.pop(str(tmp_path / "b.tar"))) and len(found) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "--out", "a.jsonl"], "--engine ray does not do --resume; leave it out"),
        (
            ["--sidecar", ".txt", "--write-metadata", "--out", "a.jsonl"],
            "--sidecar and --write-metadata; leave them out",
        ),
        ([], "--engine ray needs --out FILE"),
    ],
)
def test_what_the_engine_does_not_do_is_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["caption", "photos", "--engine", "ray", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_missing_ray_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["caption", "photos", "--engine", "ray", "--out", "a.jsonl"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'fusion-captioner[ray]'" in line


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_captions_are_there_when_they_are_whole(tmp_path: Path, ending: str):
    path = tmp_path / f"captions.{ending}"
    rows = CaptionRows(str(path), None if ending == "parquet" else caption_format(None, str(path), 1))
    rows.write([("a.jpg", ["a dog"]), ("b.jpg", ["a cat"])])
    rows.write([("c.jpg", ["a bird"])])
    assert not path.exists()
    rows.finish()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if ending == "parquet":
        table = pyarrow.parquet.read_table(path).to_pydict()
        assert table["image"] == ["a.jpg", "b.jpg", "c.jpg"] and table["captions"][2] == [table["caption"][2]]
    else:
        assert [row[:2] for row in caption_format(None, str(path), 1).rows(path.open("rb"))][2] == (
            "c.jpg",
            ["a bird"],
        )
    with pytest.raises(FileExistsError, match="exists; name another file"):
        CaptionRows(str(path), None)


@pytest.mark.parametrize(
    ("ending", "refused", "reason"),
    [("txt", "a\tb.jpg", "a tab or a line break"), ("parquet", "caf\udce9.jpg", "is not UTF-8")],
)
def test_a_name_that_the_file_cannot_hold_is_counted_and_the_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, refused: str, reason: str
):
    path = tmp_path / f"captions.{ending}"
    rows = CaptionRows(str(path), None if ending == "parquet" else caption_format(None, str(path), 1))
    assert rows.write([(refused, ["x"])]) == 1
    assert rows.write([("good.jpg", ["a dog"]), (refused, ["x"]), ("also.jpg", ["a cat"])]) == 1
    rows.finish()
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and all(reason in note for note in notes)
    if ending == "parquet":
        assert pyarrow.parquet.read_table(path)["image"].to_pylist() == ["good.jpg", "also.jpg"]
    else:
        assert path.read_text() == "good.jpg\ta dog\nalso.jpg\ta cat\n"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_without_captions_there_is_no_file(tmp_path: Path, ending: str):
    path = str(tmp_path / f"captions.{ending}")
    for end in (CaptionRows.finish, CaptionRows.close):
        rows = CaptionRows(path, None if ending == "parquet" else caption_format(None, path, 1))
        assert rows.write([]) == 0
        end(rows)
        assert list(tmp_path.iterdir()) == []


def test_captions_of_a_run_that_fails_stay_and_none_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("no cluster")))
    out = tmp_path / "captions.jsonl"
    assert main(["caption", str(tmp_path / "photo.png"), "--engine", "ray", "--out", str(out)]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]

    rows = CaptionRows(str(out), caption_format(None, str(out), 1))
    rows.write([("a.jpg", ["a dog"])])
    rows.close()
    (kept,) = tmp_path.glob("captions.jsonl.*.incomplete")
    assert b"a dog" in kept.read_bytes() and not out.exists()


def test_a_share_is_captioned_and_what_fails_is_named(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    (tmp_path / "damaged.jpg").write_bytes(b"nothing")

    def worded(texts: list[str]) -> list[str]:
        return [f"ohwx, {text}" for text in texts]

    settings = {"num_beams": 1, "num_return_sequences": 1, "max_new_tokens": 5}
    captioning = Captioning({"model": DEFAULT_CHECKPOINT}, settings, "", None, 0, 2, worded)
    names = [str(tmp_path / name) for name in ("photo.jpg", "damaged.jpg", "photo.jpg", "missing.jpg")]
    first, second = ShareCaptioner(captioning)({"start": np.array([0]), "names": [names]})
    assert first["image"] + second["image"] == names
    assert first["captions"][0][0].startswith("ohwx, ") and first["captions"][0] == second["captions"][0]
    assert first["captions"][1] == second["captions"][1] == []
    assert "damaged.jpg: not an image" in first["problem"][1] and "missing.jpg: no such file" in second["problem"][1]


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """190 photos in all three kinds of file, a damaged one, and a row that leads out of its folder."""
    (tmp_path / "set" / "photos").mkdir(parents=True)
    for number in range(150):
        (tmp_path / "set" / "photos" / f"{number:03}.jpg").write_bytes(jpeg(number))
    (tmp_path / "set" / "photos" / "damaged.jpg").write_bytes(b"nothing")
    rows = [{"bytes": jpeg(number), "path": f"row{number}.jpg"} for number in range(20)]
    table = pyarrow.table({"image": [*rows, {"bytes": None, "path": "../secret.jpg"}]})
    pyarrow.parquet.write_table(table, tmp_path / "set" / "a.parquet")
    write_archive(tmp_path / "set" / "b.tar", {f"member{number}.jpg": jpeg(number) for number in range(20)})
    return tmp_path / "set"


@pytest.mark.slow  # starts a cluster of two workers
def test_a_killed_worker_loses_and_doubles_nothing(collection: Path, tmp_path: Path):
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    out = tmp_path / "captions.jsonl"
    command = [sys.executable, "-m", "fusion_captioner.cli", "caption", str(collection), "--engine", "ray"]
    command += ["--out", str(out), "--beams", "1", "--max-new-tokens", "5"]
    with (tmp_path / "stderr").open("w") as errors:
        run = subprocess.Popen(command, stderr=errors, stdout=subprocess.DEVNULL)
    try:
        killed = _kill_a_worker(run, out)
        assert run.wait(timeout=DEADLINE) == 1
    finally:
        for process in psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []:
            process.kill()
        run.kill()
    assert killed
    names = [json.loads(line)["image"] for line in out.read_text().splitlines()]
    photos = [str(collection / "photos" / f"{number:03}.jpg") for number in range(150)]
    assert Counter(names) == Counter(
        photos + [f"row{number}.jpg" for number in range(20)] + [f"member{number}.jpg" for number in range(20)]
    )
    lines = (tmp_path / "stderr").read_text().splitlines()  # Ray says there that a worker died
    *notes, summary = [line for line in lines if line.startswith("fusion-captioner: ")]
    damaged, outside = sorted(notes, key=lambda line: "lies outside" in line)
    assert "damaged.jpg" in damaged and "../secret.jpg: lies outside the folder" in outside
    assert summary == "fusion-captioner: 2 of 192 images could not be captioned"


def _kill_a_worker(run: subprocess.Popen, out: Path) -> bool:
    """Kill a worker of the run when the first captions for `out` have come."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end and run.poll() is None:
        has_begun = False
        with suppress(FileNotFoundError):  # it may be renamed meanwhile
            has_begun = any(file.stat().st_size for file in out.parent.glob(f"{out.name}.*.incomplete"))
        for process in psutil.Process(run.pid).children(recursive=True):
            if has_begun and _title(process).startswith("ray::MapWorker"):
                os.kill(process.pid, signal.SIGKILL)
                return True
        time.sleep(0.05)
    return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""

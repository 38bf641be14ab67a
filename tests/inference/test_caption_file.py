"""`caption --out`: nothing is lost by a kill, nothing captioned twice, and several processes make one file."""

import csv
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from fake_captioner import FakeCaptioner
from PIL import Image

from fusion_captioner.cli import main
from fusion_captioner.inference import captioner as captioners
from fusion_captioner.inference.caption_file import CaptionFile
from fusion_captioner.inference.caption_formats import JsonLines
from fusion_captioner.inference.image_batches import Summary
from fusion_captioner.inference.launched_process import LaunchedProcess, launched_process
from fusion_captioner.printing import json_line

# the command in a process of its own, with the fake captioner
SCRIPT = """
import sys
from fake_captioner import FakeCaptioner
from fusion_captioner.cli import main
from fusion_captioner.inference import captioner as captioners
captioners.load_on_runtime = lambda *arguments, **settings: FakeCaptioner(seconds_a_batch=0.2)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Twelve pictures, `00.png` to `11.png`, ever redder."""
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def captioner(monkeypatch: pytest.MonkeyPatch) -> FakeCaptioner:
    captioner = FakeCaptioner()
    monkeypatch.setattr(captioners, "load_on_runtime", lambda *arguments, **settings: captioner)
    return captioner


def run(album: Path, out: Path, *flags: str) -> int:
    return main(["caption", str(album), "--model", "fake", "--batch-size", "2", "--out", str(out), *flags])


def run_as(monkeypatch: pytest.MonkeyPatch, rank: int, processes: int, *arguments) -> int:
    if processes == 1:
        return run(*arguments)
    with monkeypatch.context() as patch:
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", str(processes))
        return run(*arguments)


def captioned(out: Path) -> list[tuple[str, str]]:
    entries = [json.loads(line) for line in out.read_text().splitlines()]
    return [(Path(entry["image"]).stem, entry["caption"]) for entry in entries]


EVERYTHING = [(f"{number:02}", f"red {number}") for number in range(12)]


def test_a_disk_that_takes_half_a_row(album: Path, captioner: FakeCaptioner, tmp_path: Path, capsys) -> None:
    assert run(album, tmp_path / "whole.jsonl") == 0
    out = tmp_path / "captions.jsonl"
    # behind the limit, the kernel writes what fits in, and only the next write fails: as on a full disk
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "whole.jsonl").stat().st_size - 5, most))
    try:
        status = run(album, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert status == 2
    assert f"--out ({out}): cannot be written (File too large); make room and repeat" in capsys.readouterr().err
    assert run(album, out, "--resume") == 0
    assert captioned(out) == EVERYTHING


def test_a_kill_loses_at_most_a_batch_and_resume_does_the_rest(
    album: Path, captioner: FakeCaptioner, tmp_path: Path
) -> None:
    out = tmp_path / "captions.jsonl"
    command = ["caption", str(album), "--model", "fake", "--batch-size", "2", "--out", str(out)]
    path = os.pathsep.join((str(Path(__file__).parents[1]), *sys.path))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *command],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert process.stderr is not None
    for _ in range(4):
        assert process.stderr.readline() == "a batch begins\n"
    process.kill()
    begun = 4 + len(process.stderr.read().splitlines())
    process.wait()
    kept = captioned(out)
    assert len(kept) >= 2 * (begun - 1) and kept == EVERYTHING[: len(kept)]

    with out.open("a") as file:
        file.write('{"image": "' + str(album / "11.p"))  # what a kill in the middle of a line leaves
    assert run(album, out, "--resume") == 0
    assert captioned(out) == EVERYTHING
    assert captioner.captions == [caption for _, caption in EVERYTHING[len(kept) :]]


def test_resume_with_nothing_left_loads_no_captioner(
    album: Path, captioner: FakeCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "captions.jsonl"
    assert run(album, out) == 0
    monkeypatch.setattr(captioners, "load_on_runtime", None)
    assert run(album, out, "--resume") == 0
    assert captioned(out) == EVERYTHING


def test_resume_tries_bad_images_again(album: Path, captioner: FakeCaptioner, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    good = (album / "05.png").read_bytes()
    (album / "05.png").write_bytes(b"broken")
    assert run(album, out) == 1
    assert captioner.batches[2] == ["red 4", "red 6"]  # a bad image leaves no gap in its batch
    (album / "05.png").write_bytes(good)
    assert run(album, out, "--resume") == 0
    assert captioned(out) == [*EVERYTHING[:5], *EVERYTHING[6:], EVERYTHING[5]]


def test_several_processes_make_one_file_in_the_order_of_the_images(
    album: Path,
    captioner: FakeCaptioner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "captions.jsonl"
    (album / "04.png").write_bytes(b"broken")
    assert run_as(monkeypatch, 1, 3, album, out) == 0
    assert captioned(tmp_path / "captions.jsonl.part-1-of-3") == EVERYTHING[1::3][:1] + EVERYTHING[1::3][2:]
    assert run_as(monkeypatch, 0, 3, album, out) == 0
    assert not out.exists()
    # 1 from the last alone: a launcher would have ended the others with the first that is not 0
    assert run_as(monkeypatch, 2, 3, album, out) == 1
    assert "1 of 12 images could not be captioned" in capsys.readouterr().err
    assert captioned(out) == [*EVERYTHING[:4], *EVERYTHING[5:]]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["album", "captions.jsonl"]


def test_one_process_goes_on_with_what_several_have_left(
    album: Path, captioner: FakeCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "captions.jsonl"
    assert run_as(monkeypatch, 1, 2, album, out) == 0
    captioner.batches.clear()
    assert run(album, out, "--resume") == 0
    assert captioner.captions == [caption for _, caption in EVERYTHING[::2]]
    assert captioned(out) == EVERYTHING


def test_a_note_of_somebody_else_stays(album: Path, captioner: FakeCaptioner, tmp_path: Path) -> None:
    note = tmp_path / "captions.jsonl.done"
    note.write_text("mine")
    assert run(album, tmp_path / "captions.jsonl") == 0
    assert note.read_text() == "mine"


def test_a_note_about_other_images_does_not_count(
    album: Path, captioner: FakeCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "captions.jsonl"
    assert run_as(monkeypatch, 1, 2, album, out) == 0
    Image.new("RGB", (8, 8), (12, 0, 0)).save(album / "12.png")
    Image.new("RGB", (8, 8), (13, 0, 0)).save(album / "13.png")
    assert run_as(monkeypatch, 0, 2, album, out, "--resume") == 0
    assert not out.exists()  # 13.png is missing
    assert run_as(monkeypatch, 1, 2, album, out, "--resume") == 0
    assert captioned(out) == [*EVERYTHING, ("12", "red 12"), ("13", "red 13")]


def test_of_processes_that_end_together_one_merges(tmp_path: Path) -> None:
    images = [f"{number}.png" for number in range(4)]
    processes = [LaunchedProcess(rank, 4) for rank in range(4)]
    for attempt in range(4):
        out = tmp_path / f"{attempt}.jsonl"
        files = [CaptionFile(str(out), images, process, False, JsonLines()) for process in processes]
        together = Barrier(4)

        def end(rank: int, files: list[CaptionFile] = files, together: Barrier = together) -> Summary | None:
            files[rank].write(images[rank], ["a"])
            together.wait()
            return files[rank].finish(Summary(1, 0))

        with ThreadPoolExecutor(4) as threads:
            summaries = list(threads.map(end, range(4)))
        assert [summary for summary in summaries if summary is not None] == [Summary(4, 0)]
        assert [json.loads(line)["image"] for line in out.read_text().splitlines()] == images
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_between_the_merge_and_the_removal_of_the_parts_doubles_nothing(
    album: Path, captioner: FakeCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    out = tmp_path / "captions.jsonl"
    assert run_as(monkeypatch, 1, 2, album, out) == 0

    unlink = Path.unlink

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self.suffix.startswith(".part-"):
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        assert run_as(monkeypatch, 0, 2, album, out) == 130
    assert captioned(out) == EVERYTHING and (tmp_path / "captions.jsonl.part-0-of-2").exists()

    for rank in range(processes):
        assert run_as(monkeypatch, rank, processes, album, out, "--resume") == 0
    assert captioned(out) == EVERYTHING
    assert not [file for file in tmp_path.iterdir() if file.suffix.startswith(".part")]


def test_an_image_named_twice_is_captioned_twice_by_any_number_of_processes(
    album: Path, captioner: FakeCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, out = album / "03.png", tmp_path / "captions.jsonl"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert main(["caption", str(image), str(image), "--model", "fake", "--out", str(out)]) == 0
    assert captioned(out) == [("03", "red 3")] * 2


def test_resume_knows_an_image_however_its_path_is_written(
    album: Path, captioner: FakeCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "captions.jsonl"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(album)
    (tmp_path / "photo.png").symlink_to(album / "11.png")
    assert run(Path("album"), out) == 0
    captioner.batches.clear()
    for spelling in (album, Path("album/../album"), Path("link"), Path("photo.png")):
        assert run(spelling, out, "--resume") == 0
    assert captioner.captions == [] and captioned(out) == EVERYTHING


@pytest.mark.parametrize(
    "table",
    [
        "\ufeffimage,caption\r\n{0},a brown dog\r\n{1},a red cat\r\n",
        '"image","caption"\n"{0}","a brown dog"\n"{1}","a red cat"\n',
        "\ufeffimage,caption\r\n{0},a brown dog\r\n{1},a red cat\r\n{2},half a r",
    ],
)
def test_resume_keeps_the_rows_of_a_table_that_a_spreadsheet_saved(
    table: str, album: Path, captioner: FakeCaptioner, tmp_path: Path
) -> None:
    out = tmp_path / "captions.csv"
    images = sorted(map(str, album.iterdir()))
    out.write_bytes(table.format(*images).encode())
    assert run(album, out, "--resume") == 0
    with out.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    captions = ["a brown dog", "a red cat", *(caption for _, caption in EVERYTHING[2:])]
    assert rows == [["image", "caption"], *([image, text] for image, text in zip(images, captions, strict=True))]


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)])
def test_a_second_run_into_the_same_file_is_refused(
    album: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    first: int,
    second: int,
) -> None:
    out = tmp_path / "captions.jsonl"
    command = ["caption", str(album), "--model", "fake", "--batch-size", "1", "--out", str(out)]
    path = os.pathsep.join((str(Path(__file__).parents[1]), *sys.path))
    ranks = {} if first == 1 else {"RANK": "1", "WORLD_SIZE": str(first)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *command],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path} | ranks,
    )
    assert process.stderr is not None and process.stderr.readline() == "a batch begins\n"
    try:
        assert run_as(monkeypatch, 1 if second > 1 else 0, second, album, out, "--resume") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"is being written by process {process.pid} on " in line and "name another output" in line
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "content", [b"a list of things\n", b'{"image": 3}\n', b'{"image": "a\n', b"\xff\xd8\xff\xe0", b"{}"]
)
def test_a_file_of_something_else_is_left_alone(
    album: Path, captioner: FakeCaptioner, tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes
) -> None:
    out = tmp_path / "captions.jsonl"
    out.write_bytes(content)
    assert run(album, out) == 2
    assert "add --resume" in capsys.readouterr().err
    assert run(album, out, "--resume") == 2
    assert "line 1 is no caption" in capsys.readouterr().err
    assert out.read_bytes() == content


def test_a_file_that_cannot_be_written(album: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for out, words in ((tmp_path / "nowhere" / "captions.jsonl", "does not exist"), (album, "is a folder")):
        assert run(album, out) == 2
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["album"]


def test_flags_that_do_not_go_together(
    album: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["caption", str(album), "--model", "fake", "--resume"]) == 2
    assert "--resume needs --out" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["caption", str(album), "--model", "fake"]) == 2
    assert "2 processes need --out" in capsys.readouterr().err


def test_a_name_that_is_no_text_comes_back() -> None:
    entry = {"image": "caf\udce9.png", "caption": "ein Café"}
    assert json.loads(json_line(entry).encode()) == entry
    assert "Café" in json_line({"image": "a.png", "caption": "ein Café"})


def test_what_launchers_say() -> None:
    assert launched_process({"WORLD_SIZE": "8"}) == LaunchedProcess()
    process = launched_process({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"})
    assert process == LaunchedProcess(rank=5, processes=8, local_rank=1, local_processes=4)
    assert process.threads is not None and process.threads >= 1
    assert launched_process({"RANK": "5", "WORLD_SIZE": "8"}).threads is None
    with pytest.raises(ValueError, match="WORLD_SIZE \\(None\\) must be a number"):
        launched_process({"RANK": "0"})
    with pytest.raises(ValueError, match="RANK \\(2\\) must be below WORLD_SIZE \\(2\\)"):
        launched_process({"RANK": "2", "WORLD_SIZE": "2"})

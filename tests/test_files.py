"""Files of a command: refused where they cannot be written, whole or as they were before."""

import os
from pathlib import Path

import pytest

from fusion_captioner.files import check_output_file, check_output_folder, write_file


def test_a_file_that_can_be_written_passes_and_is_left_as_it_is(tmp_path: Path) -> None:
    old = tmp_path / "old.html"
    old.write_text("old")
    check_output_file(str(old), "--report")
    check_output_file(str(tmp_path / "new.html"), "--report")
    assert [path.name for path in tmp_path.iterdir()] == ["old.html"]
    assert old.read_text() == "old"


def test_what_cannot_be_written_is_named_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--report \(.*page.html\): the folder .*nowhere does not exist"):
        check_output_file(str(tmp_path / "nowhere" / "page.html"), "--report")
    with pytest.raises(OSError, match=r"--report \(.*\): is a folder"):
        check_output_file(str(tmp_path), "--report")
    with pytest.raises(OSError, match=r"--report \(/dev/null\): is no ordinary file"):
        check_output_file("/dev/null", "--report")
    with pytest.raises(OSError, match=r"--report \(.*\): cannot be written"):
        check_output_file(str(tmp_path / ("x" * 300)), "--report")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot be written"):
        check_output_file(str(tmp_path / "page.html"), "--report")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_file(str(tmp_path / "link"), "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "page.html"
    old.write_text("old")

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match=r"page.html: cannot be written \(No space left on device\)"):
        write_file(str(old), "new content")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert old.read_text() == "old"


def test_a_folder_that_can_be_made_passes_and_is_not_made(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "new" / "below", "--out")
    check_output_folder(tmp_path, "--out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"--out \(.*\): .*file is a file; name a folder"):
            check_output_folder(path, "--out")
    if Path("/proc/self").is_dir():
        with pytest.raises(OSError, match=r"--out \(/proc/captioner\): cannot be written"):
            check_output_folder("/proc/captioner", "--out")

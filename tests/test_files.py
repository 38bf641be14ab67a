"""Files of a command: refused where they cannot be written, whole or as they were before."""

import ast
import errno
import os
from pathlib import Path

import pytest

import fusion_captioner
from fusion_captioner.files import (
    atomic_folder,
    atomic_write,
    check_output_file,
    check_output_folder,
    expanded,
    write_text,
)


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
    write_text(str(tmp_path / "link"), "new")
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
        write_text(str(old), "new content")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert old.read_text() == "old"


@pytest.mark.parametrize("name", ["x" * 236, "x" * 255, "狗" * 78 + ".txt", "x" * 230 + "\udce9" * 20])
def test_a_long_name_is_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    check_output_file(str(path), "--report")
    write_text(path, "new")
    with atomic_folder(tmp_path / "below" / name) as folder:
        (folder / "config.json").write_text("new")
    assert path.read_text() == "new" and (tmp_path / "below" / name / "config.json").exists()
    assert {entry.name for entry in tmp_path.iterdir()} == {name, "below"}


def test_a_name_that_no_file_can_have_is_named_itself(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 256)
    with pytest.raises(OSError, match=r"x: cannot be written \(File name too long\)"):
        write_text(path, "new")


def test_long_names_have_temporary_names_of_their_own(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("x" * 255)) as first, atomic_write(tmp_path / ("x" * 254)) as second:
        first.touch()
        second.touch()
        stems = [path.name.rsplit(".", 2)[0] for path in (first, second)]
    assert stems[0] != stems[1]


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


def test_an_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "new" / "model") as folder:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []

    old = tmp_path / "model"
    old.mkdir()
    (old / "config.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(old) as folder:
        (folder / "config.json").write_text("new")
        raise KeyboardInterrupt
    assert [path.name for path in old.iterdir()] == ["config.json"]
    assert (old / "config.json").read_text() == "old"


def test_a_folder_is_there_at_the_end_with_what_it_held_before(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "below" / "model") as folder:
            assert not (tmp_path / "below" / "model" / "new").exists()
            (folder / "config.json").write_text(content)
            (folder / content).mkdir()
            (folder / content / "file").write_text(content)
    files = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "below/model/config.json": "second",
        "below/model/first/file": "first",
        "below/model/second/file": "second",
    }


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_of_a_folder_may_be_read_by_who_may_read_new_files(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "model") as folder:
            for name in ("closed.safetensors", "config.json"):
                (folder / name).write_text("{}", encoding="utf-8")
            (folder / "closed.safetensors").chmod(0o600)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {mode}


def test_a_full_disk_is_named_with_the_folder(tmp_path: Path) -> None:
    # safetensors raises an error of its own
    with (
        pytest.raises(OSError, match=r"model: cannot be written \(No space left on device\); make room"),
        atomic_folder(tmp_path / "model"),
    ):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_is_that_of_the_copy_and_not_of_what_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "model.py"
    with (
        pytest.raises(OSError, match=r"/model: cannot be written \(No space left on device\); make room"),
        atomic_folder(tmp_path / "model"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(tmp_path / "model"))


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--out \(''\) is empty; name a folder"):
        check_output_folder("", "--out")
    with pytest.raises(ValueError, match=r"--report \(''\) is empty; name a file"):
        check_output_file("", "--report")


def test_what_is_read_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    for out in (tmp_path / "model", tmp_path / "link", f"{tmp_path}/new/../model"):
        with pytest.raises(ValueError, match="is what is read; name another folder"):
            check_output_folder(out, "--out", ["some/hub-name", tmp_path / "model"])
    check_output_folder(tmp_path / "model" / "onnx", "--out", [tmp_path / "model"])


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with atomic_write(path) as first:
        first.write_text("first")
        write_text(path, "second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_a_name_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/reader")
    monkeypatch.setenv("USERPROFILE", "/home/reader")
    assert expanded("~/a.jpg") == Path("/home/reader/a.jpg")
    assert expanded("~a.jpg") == Path("~a.jpg")
    for path in Path(fusion_captioner.__file__).parent.rglob("*.py"):
        assert ".expanduser()" not in path.read_text(encoding="utf-8"), f"{path}: pathlib's raises RuntimeError"


def test_every_text_of_the_package_names_its_encoding() -> None:
    """On Windows the default is cp1252, which has neither Chinese nor Hindi."""
    unnamed = []
    for path in Path(fusion_captioner.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            is_method = isinstance(node.func, ast.Attribute)
            modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if is_method and name in ("read_text", "write_text"):
                is_named = len(node.args) > (name == "write_text")
            elif (
                name == "open"
                and ast.unparse(node.func) not in ("Image.open", "tarfile.open", "zip_file.open")
                and "_opener(" not in ast.unparse(node.func)
            ):
                is_named = any("b" in str(mode) for mode in modes) or ast.unparse(node.func) == "os.open"
            else:
                continue
            if not is_named:
                unnamed.append(f"{path.name}:{node.lineno}")
    assert unnamed == []

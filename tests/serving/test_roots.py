"""What lies outside the allowed folders is refused, in whatever way it is named."""

from pathlib import Path

import pytest

from fusion_captioner.serving.roots import Roots


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two allowed folders with a photo each, next to one that is not allowed."""
    for name in ("first", "second", "second-secret"):
        (tmp_path / name / "more").mkdir(parents=True)
        (tmp_path / name / f"{name}.png").write_bytes(b"x")
    return tmp_path / "first", tmp_path / "second"


def test_files_and_folders_below_a_root(folders: tuple[Path, Path]) -> None:
    first, second = folders
    roots = Roots([str(first), f"{second}/more/.."])
    assert roots.resolve("first.png") == roots.resolve(str(first / "first.png")) == str(first / "first.png")
    assert roots.resolve("second.png") == roots.resolve("more/../second.png") == str(second / "second.png")
    assert roots.resolve(str(second)) == str(second) and roots.resolve("more") == str(first / "more")


@pytest.mark.parametrize(
    "name", ["../second-secret/second-secret.png", "../none.png", "more/../../none", "/etc/passwd"]
)
def test_paths_that_lead_out(folders: tuple[Path, Path], name: str) -> None:
    roots = Roots(list(map(str, folders)))
    with pytest.raises(ValueError, match="lies outside the folders that may be seen"):
        roots.resolve(name)
    if not name.startswith("/"):
        with pytest.raises(ValueError, match="lies outside the folders that may be seen"):
            roots.resolve(str(folders[0] / name))


def test_links_that_lead_out(folders: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = folders
    (first / "out.png").symlink_to(tmp_path / "second-secret" / "second-secret.png")
    (first / "out").symlink_to(tmp_path / "second-secret")
    (first / "nowhere").symlink_to(tmp_path / "none")
    (first / "in.png").symlink_to(second / "second.png")
    roots = Roots([str(first), str(second)])
    for name in ("out.png", "out", "out/second-secret.png", "nowhere"):
        with pytest.raises(ValueError, match="lies outside"):
            roots.resolve(name)
    assert roots.resolve("in.png") == str(second / "second.png")


def test_a_root_that_is_a_link(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folders[0])
    roots = Roots([str(tmp_path / "link")])
    assert roots.resolve(str(tmp_path / "link" / "first.png")) == str(folders[0] / "first.png")
    assert roots.resolve(str(folders[0] / "first.png")) == str(folders[0] / "first.png")


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_names_that_are_none(folders: tuple[Path, Path], name: str) -> None:
    with pytest.raises(ValueError, match="is no path"):
        Roots([str(folders[0])]).resolve(name)


def test_a_file_that_is_missing(folders: tuple[Path, Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file or folder below"):
        Roots([str(folders[0])]).resolve("none.png")


def test_roots_that_are_no_folders(folders: tuple[Path, Path]) -> None:
    for name in ("", "/no/such/folder", str(folders[0] / "first.png")):
        with pytest.raises(NotADirectoryError, match="is no folder"):
            Roots([name])

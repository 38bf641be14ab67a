"""The tools for assistants, by the protocol's own client: in memory, and over HTTP."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp")
from colour_captioner import ColourCaptioner, photo
from mcp import Client

from fusion_captioner.serving.photo_tools import PhotoTools, create_tool_server
from fusion_captioner.serving.roots import Roots
from fusion_captioner.serving.served_captioner import ServedCaptioner


class Search:
    """An index with photos in and out of the folders, and one that is in a data set."""

    def __init__(self, *images: str) -> None:
        self.images = images

    def find_text(self, text: str, top: int) -> list[dict[str, Any]]:
        return [{"image": image, "score": 0.5} for image in self.images][:top]


class Assistant:
    """Calls tools on a folder of photos."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.captioner = ColourCaptioner()
        self.takes_prompts = True
        self.search: Any = None
        self.progress: list[tuple[float, float | None]] = []

    async def _call(self, calls: list[tuple[str, dict[str, Any]]], mode: str) -> list[Any]:
        served = ServedCaptioner(self.captioner, "colours", self.takes_prompts)  # type: ignore[arg-type]
        tools = PhotoTools(served, Roots([str(self.folder)]), self.search)

        async def report(progress: float, total: float | None, message: str | None) -> None:
            self.progress.append((progress, total))

        async with Client(create_tool_server(tools), mode=mode) as client:
            self.tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            return [await client.call_tool(name, values, progress_callback=report) for name, values in calls]

    def call(self, name: str, mode: str = "auto", **values: Any) -> dict[str, Any]:
        """What a tool returns."""
        (result,) = asyncio.run(self._call([(name, values)], mode))
        assert not result.is_error, result.content
        return result.structured_content

    def refused(self, name: str, **values: Any) -> str:
        """The line of a tool that fails; another call succeeds behind it."""
        (self.folder / "after.png").write_bytes(photo(7))
        result, after = asyncio.run(self._call([(name, values), ("caption_image", {"path": "after.png"})], "auto"))
        assert result.is_error and after.structured_content["caption"] == "a picture of red 7"
        (text,) = [part.text for part in result.content]
        assert "\n" not in text
        return text


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for red, name in enumerate(("a.png", "b.png", "more/c.png"), 1):
        (folder / name).write_bytes(photo(red))
    (tmp_path / "secret.png").write_bytes(photo(99))
    return Assistant(folder)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_caption_and_an_answer(assistant: Assistant, mode: str) -> None:
    assert assistant.call("caption_image", mode, path="a.png") == {"image": "a.png", "caption": "a picture of red 1"}
    path = str(assistant.folder / "more" / "c.png")
    answer = assistant.call("answer_question", mode, path=path, question="what is it?")
    assert answer == {"image": path, "answer": "question: what is it? answer: a picture of red 3"}
    assert set(assistant.tools) == {"caption_image", "caption_folder", "answer_question", "search_photos"}
    assert all(tool.description for tool in assistant.tools.values())
    assert [name for name, tool in assistant.tools.items() if not tool.annotations.read_only_hint] == [
        "caption_folder"
    ]


def test_questions_to_a_captioner_that_was_not_trained_to_answer(assistant: Assistant) -> None:
    assert "the question is empty" in assistant.refused("answer_question", path="a.png", question=" ")
    assistant.takes_prompts = False
    line = assistant.refused("answer_question", path="a.png", question="what is it?")
    assert "colours was not trained to answer questions; start with --model" in line


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_captions_of_a_folder(assistant: Assistant, mode: str) -> None:
    folder = assistant.folder
    (folder / "b.txt").write_text("my own words\n")
    (folder / "bad.png").write_bytes(b"words")
    for number in range(7):
        (folder / f"many {number}.png").write_bytes(photo(50 + number))
    result = assistant.call("caption_folder", mode, folder=".")
    assert result == {
        "folder": str(folder),
        "captioned": 9,
        "skipped": 1,
        "failed": [{"image": "bad.png", "reason": result["failed"][0]["reason"]}],
    }
    assert "not an image" in result["failed"][0]["reason"]
    assert (folder / "a.txt").read_text() == "a picture of red 1\n"
    assert (folder / "b.txt").read_text() == "my own words\n"
    assert (folder / "more" / "c.txt").read_text() == "a picture of red 3\n"
    assert assistant.progress == [(8, 10), (10, 10)]
    assert max(assistant.captioner.batches) <= 8
    before = len(assistant.captioner.batches)
    again = assistant.call("caption_folder", mode, folder=".")
    assert (again["captioned"], again["skipped"], len(again["failed"])) == (0, 10, 1)
    assert len(assistant.captioner.batches) == before


def test_photos_with_one_name_and_two_endings_have_a_caption_file_each(assistant: Assistant) -> None:
    (assistant.folder / "a.jpg").write_bytes(photo(200, kind="JPEG"))
    assistant.call("caption_folder", folder=".")
    assert (assistant.folder / "a.png.txt").read_text() == "a picture of red 1\n"
    assert (assistant.folder / "a.jpg.txt").exists() and not (assistant.folder / "a.txt").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 elsewhere")
def test_a_photo_whose_name_is_not_utf_8_is_named_with_escapes(assistant: Assistant) -> None:
    Path(os.fsdecode(os.fsencode(assistant.folder) + b"/b\xfe.jpg")).write_bytes(b"no picture")
    result = assistant.call("caption_folder", folder=".")
    assert result["captioned"] == 3
    assert [each["image"] for each in result["failed"]] == [r"b\xfe.jpg"]


def test_a_caption_file_that_cannot_be_written_stops_no_others(assistant: Assistant) -> None:
    name = "0" * 248  # before all others; with a caption file each, .png.txt is too long
    for ending, kind in ((".png", "PNG"), (".jpg", "JPEG")):
        (assistant.folder / f"{name}{ending}").write_bytes(photo(100, kind=kind))
    result = assistant.call("caption_folder", folder=".")
    assert [each["image"] for each in result["failed"]] == [f"{name}.jpg", f"{name}.png"]
    assert all("cannot be written (File name too long)" in each["reason"] for each in result["failed"])
    assert result["captioned"] == 3 and (assistant.folder / "a.txt").read_text() == "a picture of red 1\n"


def test_nothing_outside_of_the_folders_is_read_or_written(assistant: Assistant, tmp_path: Path) -> None:
    folder = assistant.folder
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "a.txt").symlink_to(tmp_path / "new.txt")  # leads nowhere: writing would make that file
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "d.png").write_bytes(photo(98))
    (folder / "linked").symlink_to(tmp_path / "outside")
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "linked/d.png"):
        assert "lies outside the folders that may be seen" in assistant.refused("caption_image", path=path)
    for path in ("..", "linked", str(tmp_path)):
        assert "lies outside" in assistant.refused("caption_folder", folder=path)
    result = assistant.call("caption_folder", folder=".")
    assert [each["image"] for each in result["failed"]] == ["link.png"]
    assert "lies outside" in result["failed"][0]["reason"]
    assert not (tmp_path / "new.txt").exists() and not list(tmp_path.rglob("outside/*.txt"))
    assert not (folder / "link.txt").exists()


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("caption_image", {"path": "none.png"}, "none.png: no such file or folder below"),
        ("caption_image", {"path": "http://127.0.0.1/a.png"}, "no such file"),
        ("caption_image", {"path": "data:image/png;base64,aGVsbG8="}, "no such file"),
        ("caption_image", {"path": ""}, "is no path"),
        ("caption_image", {"path": "more"}, "a folder, not an image"),
        ("caption_folder", {"folder": "a.png"}, "is no folder"),
        ("search_photos", {"text": "a dog"}, "there is no index"),
    ],
)
def test_calls_that_are_wrong(assistant: Assistant, name: str, values: dict[str, Any], words: str) -> None:
    assert words in assistant.refused(name, **values)


def test_a_folder_without_photos_and_a_fault(assistant: Assistant, tmp_path: Path) -> None:
    (assistant.folder / "empty").mkdir()
    assert "holds no photos" in assistant.refused("caption_folder", folder="empty")
    fault = assistant.refused("answer_question", path="a.png", question="fault")
    assert fault == "Error executing tool answer_question"  # nothing of the fault itself


def test_photos_that_are_found_lie_in_the_folders(assistant: Assistant, tmp_path: Path) -> None:
    inside = str(assistant.folder / "more" / "c.png")
    assistant.search = Search(str(tmp_path / "secret.png"), inside, "val/17", str(assistant.folder / "a.png"))
    found = assistant.call("search_photos", text="a dog")["results"]
    assert [row["image"] for row in found] == [inside, str(assistant.folder / "a.png")]
    assert len(assistant.call("search_photos", text="a dog", top=1)["results"]) == 1
    assert "is empty" in assistant.refused("search_photos", text=" ")

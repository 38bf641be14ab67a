"""A tool server for assistants, by the Model Context Protocol (https://modelcontextprotocol.io): captions, answers and
searches, within the folders that it is given."""

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from anyio import to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from PIL import Image
from pydantic import Field

from fusion_captioner import __version__
from fusion_captioner.data.row_layouts import photo_sidecars
from fusion_captioner.files import write_text
from fusion_captioner.image_loading import load_resized_image
from fusion_captioner.serving.roots import Roots
from fusion_captioner.serving.served_captioner import ServedCaptioner

if TYPE_CHECKING:
    from fusion_captioner.serving.photo_search import PhotoSearch  # needs torch, and few servers have an index

BATCH_SIZE = 8
# Results that are looked at for those that lie in the folders.
CANDIDATES = 1000
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

Photo = Annotated[str, Field(description="path of a photo: absolute, or relative to one of the allowed folders")]
Result = TypeVar("Result")


class PhotoTools:
    """
    What the tools do.

    Args:
        captioner: that captions and answers.
        roots: the folders that may be seen.
        search: the index that photos are searched in, if there is one.
    """

    def __init__(self, captioner: ServedCaptioner, roots: Roots, search: "PhotoSearch | None" = None) -> None:
        self.captioner = captioner
        self.roots = roots
        self.search = search

    def caption(self, path: str) -> str:
        """The caption of a photo."""
        return self._write(path, "")

    def answer(self, path: str, question: str) -> str:
        """
        The answer to a question about a photo.

        Raises:
            ValueError: the captioner was not trained to answer, or the question is empty.
        """
        if not self.captioner.takes_prompts:
            raise ValueError(
                f"{self.captioner.name} was not trained to answer questions; start with --model and a captioner that "
                "was, or with --prompts."
            )
        if not question.strip():
            raise ValueError("the question is empty; ask something.")
        return self._write(path, self.captioner.chat_prompt([{"role": "user", "content": question}]))

    def uncaptioned(self, folder: str) -> tuple[Path, dict[Path, Path], int]:
        """
        The photos in a folder and below it that have no caption file.

        Returns:
            the real folder; photo → the caption file that it is to have; how many photos have one already.

        Raises:
            ValueError: there are no photos.
        """
        root = Path(self.roots.resolve(folder))
        if not root.is_dir():
            raise NotADirectoryError(f"{folder}: is no folder; name a folder of photos.")
        photos = photo_sidecars(root)
        if not photos:
            raise ValueError(f"{folder}: the folder holds no photos.")
        names = Counter(photo.with_suffix("") for photo in photos)
        missing = {
            # a.jpg and a.png cannot share a.txt
            photo: photo.with_suffix(".txt") if names[photo.with_suffix("")] == 1 else Path(f"{photo}.txt")
            for photo, texts in photos.items()
            if not texts
        }
        return root, missing, len(photos) - len(missing)

    def write_captions(self, sidecars: dict[Path, Path]) -> list[tuple[Path, str]]:
        """Caption some photos and write a caption file for each; returns those that failed, with the reason."""
        failed: list[tuple[Path, str]] = []
        pictures: dict[Path, Image.Image] = {}
        for photo in sidecars:
            try:
                pictures[photo] = self._read(str(photo))
            except (ValueError, OSError) as error:
                failed.append((photo, str(error)))
        if pictures:
            texts = self.captioner.caption(list(pictures.values()), [""] * len(pictures))
            for photo, (text, *_) in zip(pictures, texts, strict=True):
                try:
                    write_text(sidecars[photo], f"{text}\n")
                except OSError as error:
                    failed.append((photo, str(error)))
        return failed

    def find(self, text: str, top: int) -> list[dict[str, Any]]:
        """
        The photos in the folders that are closest to a text, best first.

        Raises:
            ValueError: there is no index, or the text is empty or too long.
        """
        if self.search is None:
            raise ValueError(
                "there is no index; make one with `fusion-captioner index`, and start with --index INDEX."
            )
        if not text.strip():
            raise ValueError("the text to search by is empty; say what to find.")
        found = self.search.find_text(text, CANDIDATES)
        rows = [row for row in found if os.path.isabs(row["image"]) and row["image"] in self.roots]
        return [row | {"image": _shown(row["image"])} for row in rows[:top]]

    def _read(self, path: str) -> Image.Image:
        real = self.roots.resolve(path)
        return load_resized_image(real, self.captioner.image_settings, name=path)

    def _write(self, path: str, prompt: str) -> str:
        return self.captioner.caption([self._read(path)], [prompt])[0][0]


def create_tool_server(tools: PhotoTools) -> "MCPServer[Any]":
    """The server, for any transport."""
    server: MCPServer[Any] = MCPServer(
        "fusion-captioner",
        version=__version__,
        instructions=f"Captions and finds photos below these folders: {', '.join(tools.roots.folders)}.",
        log_level="WARNING",
    )

    @server.tool(annotations=READS)
    async def caption_image(path: Photo) -> dict[str, Any]:
        """Describe a photo in one sentence."""
        return {"image": path, "caption": await _in_thread(lambda: tools.caption(path))}

    @server.tool(annotations=READS)
    async def answer_question(
        path: Photo, question: Annotated[str, Field(description="a question about the photo")]
    ) -> dict[str, Any]:
        """Answer a question about a photo in a few words."""
        return {"image": path, "answer": await _in_thread(lambda: tools.answer(path, question))}

    @server.tool(annotations=READS)
    async def search_photos(
        text: Annotated[str, Field(description="what the photos show, in English")],
        top: Annotated[int, Field(description="results", ge=1, le=100)] = 10,
    ) -> dict[str, Any]:
        """Find the photos that show what a text says, best first. `score` is a cosine: only its order matters."""
        return {"results": await _in_thread(lambda: tools.find(text, top))}

    @server.tool(annotations=WRITES)
    async def caption_folder(
        folder: Annotated[str, Field(description="path of a folder; photos in folders below it count too")],
        context: Context,
    ) -> dict[str, Any]:
        """Write a caption file (photo.txt) next to each photo of a folder. Photos that have one are left alone."""
        root, missing, skipped = await _in_thread(lambda: tools.uncaptioned(folder))
        photos = list(missing)
        failed: list[tuple[Path, str]] = []
        for start in range(0, len(photos), BATCH_SIZE):
            batch = {photo: missing[photo] for photo in photos[start : start + BATCH_SIZE]}
            failed += await _in_thread(partial(tools.write_captions, batch))
            done = start + len(batch)
            await context.report_progress(done, len(photos), f"{done} of {len(photos)} photos")
        return {
            "folder": _shown(root),
            "captioned": len(photos) - len(failed),
            "skipped": skipped,
            "failed": [
                {"image": _shown(photo.relative_to(root)), "reason": _shown(reason)} for photo, reason in failed
            ],
        }

    return server


def _shown(text: str | Path) -> str:
    """Text with a file's name; bytes in it that are no UTF-8, which answers must be, are escaped."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


async def _in_thread(function: Callable[[], Result]) -> Result:
    """What `function` returns; what it raises about a call is reported to the assistant."""
    try:
        return await to_thread.run_sync(function)
    except (ValueError, OSError) as error:
        raise ToolError(" ".join(str(error).split())) from error

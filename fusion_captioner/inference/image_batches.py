"""Images of a command in batches: read by threads, and those that cannot be read told of and counted."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from fusion_captioner.image_loading import load_image


class ImageBatches:
    """
    Pictures in batches, read by threads; what is wrong with one that cannot be read is told on stderr.

    Args:
        images: files and URLs.
        batch_size: images at a time.
        target: `(H, W)` that they are resized to.
    """

    def __init__(self, images: list[str], batch_size: int, target: tuple[int, int]) -> None:
        self.images = images
        self.batch_size = batch_size
        self.target = target
        self.bad = 0

    def __iter__(self) -> Iterator[tuple[int, list[str], list[Image.Image]]]:
        """Number of the batch's first image, and of those that can be read names and pictures, at least one."""
        with ThreadPoolExecutor(max_workers=2) as readers:
            for start in range(0, len(self.images), self.batch_size):
                batch = self.images[start : start + self.batch_size]
                names, pictures = [], []
                for name, picture in zip(batch, readers.map(lambda name: _read(name, self.target), batch)):
                    if isinstance(picture, str):
                        self.bad += 1
                        print(f"fusion-captioner: {picture}", file=sys.stderr)
                    else:
                        names.append(name)
                        pictures.append(picture)
                if pictures:
                    yield start, names, pictures

    def exit_status(self, done: str) -> int:
        """0, or 1 if some images could not be read, or 2 if none could; `done` is what was to be done to them."""
        if self.bad and len(self.images) > 1:
            print(f"fusion-captioner: {self.bad} of {len(self.images)} images could not be {done}", file=sys.stderr)
        return 0 if not self.bad else 2 if self.bad == len(self.images) else 1


def _read(name: str, target: tuple[int, int]) -> Image.Image | str:
    """The picture, or what is wrong with it."""
    try:
        return load_image(name, target_size=target)
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())

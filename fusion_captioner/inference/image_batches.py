"""Images in batches for the commands: prefetched; what is wrong with one is printed while the others go on."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from tqdm import tqdm

from fusion_captioner.image_loading import load_resized_image
from fusion_captioner.inference.launched_process import LaunchedProcess, usable_cores
from fusion_captioner.prefetching import prefetch
from fusion_captioner.printing import print_note

# Reading takes less time than captioning, and threads share their interpreter: more of them would only help with URLs.
MAX_READERS = 8
BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


@dataclass(frozen=True)
class Summary:
    """How many images there were, how many of them could not be read, and of how many old captions were kept."""

    images: int
    bad: int
    kept: int = 0

    def exit_status(self, done: str) -> int:
        """0, or 1 if some images could not be read, or 2 if none could; `done` is what was to be done to them."""
        if self.kept:
            print_note(
                f"{self.kept} of {self.images} images had captions already, which stay; --overwrite replaces them"
            )
        if self.bad and self.images > 1:
            print_note(f"{self.bad} of {self.images} images could not be {done}")
        return 0 if not self.bad else 2 if self.bad == self.images else 1


class ImageBatches:
    """
    Pictures in batches, in the order of their names; the next ones are read while the caller works on one.

    On a terminal a bar on stderr shows images per second and the time that is left.

    Args:
        images: files and URLs.
        places: which of them are wanted, in ascending order.
        batch_size: pictures per batch; only the last batch has fewer.
        image_settings: those of the image processor, for the size that pictures are held in.
        process: whose cores may be used.
        total: images of this process, those that were done before included; by default all of `places` are left.
    """

    def __init__(
        self,
        images: Sequence[str],
        places: Sequence[int],
        batch_size: int,
        image_settings: Mapping[str, Any],
        process: LaunchedProcess,
        total: int | None = None,
    ) -> None:
        self.images = images
        self.places = places
        self.batch_size = batch_size
        self.image_settings = image_settings
        self.process = process
        self.total = len(places) if total is None else total
        self.readers = min(max(2, process.threads or usable_cores()), MAX_READERS)
        self.bad = 0

    def __iter__(self) -> Iterator[tuple[int, list[str], list[Image.Image]]]:
        """Place of a batch's first picture, and its names and pictures, at least one."""
        batch: list[tuple[int, Image.Image]] = []
        shown = self.total > 1 and self.process.local_rank == 0
        with tqdm(
            total=self.total,
            initial=self.total - len(self.places),
            unit=" images",
            bar_format=BAR_FORMAT,
            dynamic_ncols=True,
            file=sys.stderr,
            disable=None if shown else True,  # None: shown on a terminal
        ) as bar:
            for place, picture in prefetch(self.places, self._read, self.batch_size + self.readers, self.readers):
                if isinstance(picture, str):
                    self.bad += 1
                    print_note(picture)
                    bar.update()
                else:
                    batch.append((place, picture))
                if batch and (len(batch) == self.batch_size or place == self.places[-1]):
                    yield batch[0][0], [self.images[each] for each, _ in batch], [picture for _, picture in batch]
                    bar.update(len(batch))
                    batch = []

    def _read(self, place: int) -> Image.Image | str:
        """The picture in the size that is wanted, or what is wrong with it."""
        try:
            return load_resized_image(self.images[place], self.image_settings)
        except (ValueError, OSError) as error:
            return str(error)

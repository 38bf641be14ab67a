"""Hashes of images by content, remembered by path, size and modification time, so that a file is read once."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from pyarrow import feather
from tqdm.auto import tqdm

from fusion_captioner.files import atomic_write
from fusion_captioner.fingerprints import append_checksum, hash_bytes, read_checked

logger = logging.getLogger(__name__)

# Reading and hashing release the GIL.
THREADS = 8
ROWS_AT_ONCE = 1024


class ImageHashes:
    """Hashes of the images of data sets.

    Args:
        file: where the hashes of files are remembered. Where it is damaged, files are hashed again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[str, tuple[int, int, str]] = {}  # path → (bytes, modification time in ns, hash)
        if file.exists():
            try:
                table = feather.read_table(pa.py_buffer(read_checked(file))).to_pydict()
                values = zip(table["size"], table["mtime_ns"], table["hash"], strict=True)
                self._known = dict(zip(table["path"], values, strict=True))
            except (ValueError, KeyError, pa.ArrowException) as error:
                logger.warning("%s; the images are hashed again", error)

    def of_rows(self, rows: datasets.Dataset, label: str) -> list[str | None]:
        """The hash of every row's `image`; None where its file cannot be read.

        Args:
            rows: with a column `image` of undecoded images.
            label: what the progress bar calls them.
        """
        images = rows.select_columns(["image"])
        hashes: list[str | None] = []
        news: dict[str, tuple[int, int, str]] = {}
        with (
            ThreadPoolExecutor(THREADS) as pool,
            tqdm(total=len(images), desc=f"hashing images of {label}", disable=None, leave=False) as progress,
        ):
            for start in range(0, len(images), ROWS_AT_ONCE):
                part = images[start : start + ROWS_AT_ONCE]["image"]
                for image, entry in zip(part, pool.map(self._entry, part), strict=True):
                    hashes.append(entry and entry[2])
                    if entry and image["bytes"] is None and self._known.get(image["path"]) != entry:
                        news[image["path"]] = entry
                progress.update(len(part))
        if news:
            self._known |= news
            self._save()
        return hashes

    def _entry(self, image: dict[str, Any]) -> tuple[int, int, str] | None:
        if image["bytes"] is not None:
            return (len(image["bytes"]), 0, hash_bytes(image["bytes"]))
        path = image["path"]
        try:
            state = os.stat(path)
            known = self._known.get(path)
            if known and known[:2] == (state.st_size, state.st_mtime_ns):
                return known
            return (state.st_size, state.st_mtime_ns, hash_bytes(Path(path).read_bytes()))
        except OSError:
            return None

    def _save(self) -> None:
        sizes, times, hashes = zip(*self._known.values(), strict=True)
        table = pa.table({"path": list(self._known), "size": sizes, "mtime_ns": times, "hash": hashes})
        with atomic_write(self.file) as temporary:
            feather.write_feather(table, temporary)
            append_checksum(temporary)

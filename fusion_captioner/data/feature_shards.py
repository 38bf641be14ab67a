"""Arrow files of float16 image features: written shard by shard, read memory-mapped, row by row.

P: regions of an image, Dv: width of a region

`datasets` reads these files too (`datasets.Dataset.from_file`), but hands out float16 as float32 through Python
objects: 120 ms for 128 images of 49 x 1280, which a view of the mapped file and one copy do in 1 to 4 ms.
"""

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import torch

from fusion_captioner.files import atomic_write
from fusion_captioner.fingerprints import append_checksum, read_checked

logger = logging.getLogger(__name__)

Shard = TypeVar("Shard")


def shard_paths(folder: Path, kind: str = "features") -> list[Path]:
    """The complete shards `KIND-00000.arrow`, ... in the order of their numbers."""
    return sorted(path for path in folder.glob(f"{kind}-*.arrow") if path.stem[len(kind) + 1 :].isdecimal())


def new_shard_path(folder: Path, kind: str = "features") -> Path:
    """The name of the next shard."""
    # not how many there are: a damaged one may have been removed from among them
    number = max((int(path.stem[len(kind) + 1 :]) + 1 for path in shard_paths(folder, kind)), default=0)
    return folder / f"{kind}-{number:05d}.arrow"


def open_shards(folder: Path, kind: str, read: Callable[[Path], Shard], loss: str) -> list[Shard]:
    """
    The shards of a cache. Damaged ones are logged and removed, so that what they held is made again.

    Args:
        read: opens a shard; raises a ValueError where it is none.
        loss: what follows from the damage, for the log.
    """
    shards = []
    for path in shard_paths(folder, kind):
        try:
            read_checked(path)
            shards.append(read(path))
        except ValueError as error:
            logger.warning("%s; %s", error, loss)
            path.unlink()
    return shards


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow stream as `datasets` reads it, with a checksum behind it, atomically."""
    with atomic_write(path) as temporary:
        with temporary.open("wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        append_checksum(temporary)


class ShardWriter:
    """Gathers the features of images and writes them as shards, each atomically.

    Args:
        folder: where the shards go, behind those that are there.
        shape: (P, Dv).
        rows_per_shard: images in a shard.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], rows_per_shard: int) -> None:
        self.folder = folder
        self.shape = shape
        self._keys: list[str] = []
        self._features = np.empty((rows_per_shard, *shape), np.float16)

    def add(self, key: str, features: np.ndarray) -> None:
        """Add the features, (P, Dv), of one image."""
        self._features[len(self._keys)] = features
        self._keys.append(key)
        if len(self._keys) == len(self._features):
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered as a shard.

        Raises:
            OSError: the disk is full, or another error of the file system; no file is left behind.
        """
        if not self._keys:
            return
        rows = len(self._keys)
        regions, width = self.shape
        schema = datasets.Features(
            {
                "image_key": datasets.Value("string"),
                "image_hidden_states": datasets.List(
                    datasets.List(datasets.Value("float16"), length=width), length=regions
                ),
            }
        ).arrow_schema
        values = pa.Array.from_buffers(pa.float16(), rows * regions * width, [None, pa.py_buffer(self._features)])
        column = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(values, width), regions)
        table = pa.table([pa.array(self._keys), column], schema=schema)
        write_table(new_shard_path(self.folder), table)
        self._keys = []


class MappedShard:
    """One shard, memory-mapped: `keys`, and `features` of shape (rows, P, Dv), float16.

    The mapping is private (copy on write): writing to a row changes neither the file nor other processes.

    Raises:
        ValueError: the file is no shard of features.
    """

    def __init__(self, path: Path) -> None:
        try:
            with pa.memory_map(str(path)) as file:
                content = file.read_buffer()
            with pa.ipc.open_stream(content) as stream:
                table = stream.read_all()
            self.keys: list[str] = table["image_key"].to_pylist()
            column = table["image_hidden_states"].chunk(0)
            values = column.flatten().flatten()
            regions, width = column.type.list_size, column.type.value_type.list_size
        except (pa.ArrowInvalid, KeyError, IndexError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: not a readable shard of features ({reason})") from None
        offset = values.buffers()[1].address - content.address
        array = np.memmap(path, np.float16, mode="c", offset=offset, shape=(len(self.keys), regions, width))
        self.features = torch.from_numpy(array)


class ImageFeatures:
    """Cached grid features of the images of one split, by image id.

    Args:
        paths: shards.
        rows: image id → row, counted through all shards.
        fingerprint: of the encoder and the preprocessing that made them.
    """

    def __init__(self, paths: Sequence[Path], rows: dict[str, int], fingerprint: str) -> None:
        self.paths = list(paths)
        self.fingerprint = fingerprint
        self._rows = rows
        self._open()

    def _open(self) -> None:
        shards = [MappedShard(path) for path in self.paths]
        self._shards = [shard.features for shard in shards]
        self._ends = np.cumsum([len(shard.features) for shard in shards]).tolist()

    def __getstate__(self) -> dict[str, Any]:
        # A data-loader worker that is spawned maps the files for itself.
        return {"paths": self.paths, "fingerprint": self.fingerprint, "_rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def shape(self) -> tuple[int, int]:
        """(P, Dv)."""
        _, regions, width = self._shards[0].shape
        return regions, width

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows

    def __getitem__(self, image_id: str) -> torch.Tensor:
        """The features of an image, (P, Dv), float16: a view of the mapped file; copy it to keep it."""
        row = self._rows[image_id]
        shard = bisect_right(self._ends, row)
        return self._shards[shard][row - (self._ends[shard - 1] if shard else 0)]

    def require(self, image_ids: Iterable[str]) -> None:
        """Raises a ValueError if an image is not among them."""
        missing = [image_id for image_id in image_ids if image_id not in self._rows]
        if missing:
            raise ValueError(
                f"{len(missing)} images, such as image_id {missing[0]!r}, have no cached features; "
                "cache the features of the rows that are trained on."
            )

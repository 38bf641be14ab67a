"""Embeddings on disk by the hash of what was embedded: Arrow files, a shard at a time, read memory-mapped.

N: rows, E: projection width

A shard is written atomically: it is there whole or not at all. One that was damaged later is removed, and what it
held is embedded again.
"""

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from fusion_captioner.data.feature_shards import new_shard_path, open_shards, write_table

ROWS_PER_SHARD = 2048
KEY, EMBEDDING = "key", "embedding"


def read_table(path: Path, features: datasets.Features) -> datasets.Dataset:
    """An Arrow stream, memory-mapped.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        table = datasets.Dataset.from_file(str(path))
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: is no Arrow file that can be read ({str(error).splitlines()[0]})") from error
    if table.features != features:
        raise ValueError(f"{path}: holds other columns than {', '.join(features)}")
    return table


class EmbeddingShards:
    """All embeddings of one kind in a folder, and a place for more.

    Args:
        folder: an existing folder.
        kind: what the names of the files begin with.
        width: E.
    """

    def __init__(self, folder: Path, kind: str, width: int) -> None:
        self.folder = folder
        self.kind = kind
        self.width = width
        self.features = datasets.Features(
            {KEY: datasets.Value("string"), EMBEDDING: datasets.List(datasets.Value("float32"), length=width)}
        )
        self._shards: list[datasets.Dataset] = []
        self._rows: dict[str, int] = {}
        self._waiting: dict[str, np.ndarray] = {}
        for shard in open_shards(folder, kind, self._read, "what it held is embedded again"):
            self._append(shard)

    def __len__(self) -> int:
        """How many have been written."""
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows or key in self._waiting

    def add(self, keys: Sequence[str], embeddings: np.ndarray) -> None:
        """Add embeddings (N, E); they are written when a shard is full, and by [`flush`].

        Raises:
            ValueError: an embedding is not finite.
            OSError: the shard cannot be written.
        """
        if not np.isfinite(embeddings).all():
            raise ValueError(
                "an embedding is not finite; check the weights of the checkpoint, which may have diverged."
            )
        self._waiting.update(zip(keys, embeddings, strict=True))
        if len(self._waiting) >= ROWS_PER_SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as a shard."""
        if not self._waiting:
            return
        values = np.stack(list(self._waiting.values())).astype(np.float32)
        columns = [
            pa.array(list(self._waiting)),
            pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), self.width),
        ]
        path = new_shard_path(self.folder, self.kind)
        write_table(path, pa.table(columns, schema=self.features.arrow_schema))
        self._waiting = {}
        self._append(self._read(path))

    def select(self, keys: Sequence[str]) -> datasets.Dataset:
        """The rows of these keys in this order, all of which have been written."""
        return datasets.concatenate_datasets(self._shards).select([self._rows[key] for key in keys])

    def _read(self, path: Path) -> datasets.Dataset:
        return read_table(path, self.features)

    def _append(self, shard: datasets.Dataset) -> None:
        first = sum(map(len, self._shards))
        self._rows.update((key, first + row) for row, key in enumerate(shard[KEY][:]))
        self._shards.append(shard)

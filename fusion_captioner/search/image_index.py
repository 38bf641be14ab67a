"""An index to search images and texts in, on disk.

    INDEX/index.json            what made the index, and which generation of the files below is committed
    INDEX/images-00000.arrow    embeddings of images by content; texts-00000.arrow: of texts; see embedding_shards.py
    INDEX/image_rows-1.arrow    generation 1: the images, row by row, and the texts in text_rows-1.arrow
    INDEX/image_rows-1.faiss    FAISS index of the same rows, and text_rows-1.faiss
    INDEX/image_hashes.feather  hashes of image files, so that none is read twice

Every file is written atomically, and `index.json` comes last. A run that is killed leaves the committed generation and
all complete shards, from which the next run continues. Shards hold what was computed; generations are made from them
in moments, and made again where they are damaged.
"""

import json
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.search import FaissIndex

from fusion_captioner.data.feature_shards import write_table
from fusion_captioner.file_locks import wait_for_lock
from fusion_captioner.files import INCOMPLETE, atomic_write, check_output_folder, write_json
from fusion_captioner.fingerprints import hash_file
from fusion_captioner.inference.retriever import Retriever
from fusion_captioner.search.embedding_shards import (
    EMBEDDING,
    KEY,
    EmbeddingShards,
    read_table,
)

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "index.json"
LOCK = ".lock"
# Rows whose embeddings are compared at once.
ROWS_AT_ONCE = 8192
TEXT, TEXTS = datasets.Value("string"), datasets.List(datasets.Value("string"))
# Columns stored for each row. `split` and `row` locate images that are not files.
ROW_FEATURES = {
    "images": datasets.Features(
        {"image": TEXT, "captions": TEXTS, "split": TEXT, "row": datasets.Value("int64"), KEY: TEXT}
    ),
    "texts": datasets.Features({"text": TEXT, "images": TEXTS, KEY: TEXT}),
}
NAMES = {"images": "image", "texts": "text"}


@dataclass(frozen=True)
class Manifest:
    """The content of `index.json`.

    Attributes:
        model, revision: checkpoint that made the embeddings, as it was named.
        fingerprint: of its weights and preprocessing.
        preprocessing: of its images.
        embedding_width: E.
        source, layout, split: the folder or data set that is indexed, as for the command.
        columns: where its images and captions are, as for [`~fusion_captioner.search.indexed_images.load_images`].
        generation: number of the committed files, 0 before the first are complete.
        rows: kind → how many there are.
        digests: file of the generation → hash of its content.
        format_version: of this layout.
    """

    model: str
    revision: str
    fingerprint: str
    preprocessing: dict
    embedding_width: int
    source: str
    layout: str
    split: str | None
    columns: dict
    generation: int = 0
    rows: dict = field(default_factory=dict)
    digests: dict = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(
        cls, retriever: Retriever, source: str, layout: str, split: str | None, columns: dict, revision: str
    ) -> "Manifest":
        """That of a new index, without rows."""
        return cls(
            model=_absolute(retriever.name),
            revision=revision,
            fingerprint=retriever.fingerprint,
            preprocessing=retriever.preprocessing,
            embedding_width=retriever.width,
            source=_absolute(source),
            layout=layout,
            split=split,
            columns=columns,
        )

    def command(self, folder: Path) -> str:
        """The command that brings the index in `folder` up to date."""
        flags = [self.source, "--model", self.model, "--out", str(folder)]
        for name, value, default in (
            ("--layout", self.layout, "auto"),
            ("--split", self.split, None),
            ("--revision", self.revision, "main"),
        ):
            flags += [] if value is None or value == default else [name, value]
        for name, value in self.columns.items():
            flags += [f"--{name.replace('_', '-')}", *([value] if isinstance(value, str) else value)]
        return shlex.join(["fusion-captioner", "index", *flags])


def require_faiss() -> Any:
    """The module `faiss`.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        return import_module("faiss")
    except ImportError as error:
        raise ImportError(
            f"searching needs the package faiss-cpu ({error}); install it with: pip install 'fusion-captioner[search]'"
        ) from error


def check_index_folder(folder: Path) -> None:
    """
    Make sure that an index can be written in `folder`; nothing is left there.

    Raises:
        ValueError: it holds something else, or is a file.
        OSError: writing is not allowed.
    """
    check_output_folder(folder, "--out")
    if (folder / MANIFEST).is_file() or not folder.is_dir():
        return
    # a run that was killed at the very start has left these
    if any(path.name != LOCK and not path.name.endswith(INCOMPLETE) for path in folder.iterdir()):
        raise ValueError(f"--out ({folder}): is neither empty nor an index; name another folder.")


class ImageIndex:
    """An existing index on disk.

    Args:
        folder: of the index.

    Raises:
        FileNotFoundError: the folder is not there, or holds no index.
        ValueError: `index.json` is damaged, or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)

    def check_source(self, source: str, split: str | None, columns: dict) -> None:
        """
        Raises:
            ValueError: it is an index of other data.
        """
        manifest = self.manifest
        was, now = (
            f"{data} ({', '.join(f'{name} {value}' for name, value in parts.items())})" if parts else data
            for data, parts in (
                (manifest.source, ({"split": manifest.split} if manifest.split else {}) | manifest.columns),
                (_absolute(source), ({"split": split} if split else {}) | columns),
            )
        )
        if was != now:
            raise ValueError(f"--out ({self.folder}): is an index of {was}, not of {now}; name another folder.")

    def check_checkpoint(self, retriever: Retriever) -> None:
        """
        Raises:
            ValueError: another checkpoint made the index.
        """
        manifest = self.manifest
        if manifest.fingerprint != retriever.fingerprint:
            raise ValueError(
                f"{self.folder}: was built by another checkpoint, {manifest.model} ({manifest.fingerprint}), than "
                f"{retriever.name} ({retriever.fingerprint}); give that one as --model, or index into another folder."
            )

    @property
    def hashes_file(self) -> Path:
        return self.folder / "image_hashes.feather"

    def shards(self, kind: str) -> EmbeddingShards:
        """The embeddings of images or texts."""
        return EmbeddingShards(self.folder, kind, self.manifest.embedding_width)

    def rows(self, kind: str) -> datasets.Dataset:
        """The committed rows.

        Raises:
            ValueError: there are none yet, or their file is damaged.
        """
        if not self.manifest.generation:
            raise ValueError(f"{self.folder}: the index was never finished; go on with: {self._command}")
        path = self._checked(kind, ".arrow")
        rows = read_table(path, ROW_FEATURES[kind])
        if len(rows) != self.manifest.rows.get(kind) or rows.data.column(NAMES[kind]).null_count:
            raise ValueError(f"{path}: holds other rows than {MANIFEST} says; {self._fix}")
        return rows

    def searchable(self, kind: str) -> datasets.Dataset:
        """The committed rows with their FAISS index, named `EMBEDDING`.

        Raises:
            ValueError: there are no such rows, or a file is damaged.
        """
        try:
            rows = self.rows(kind)
            if not len(rows):
                raise ValueError(f"{self.folder}: holds no {kind} to find; index a data set with captions.")
            path = self._checked(kind, ".faiss")
            try:
                rows.load_faiss_index(EMBEDDING, str(path))
                fits = self._is_of_unit_vectors(rows.get_index(EMBEDDING).faiss_index, len(rows))
            except (RuntimeError, ValueError, MemoryError):  # damaged behind a digest of the damage
                fits = False
            if not fits:
                raise ValueError(f"{path}: is no index of these rows; {self._fix}")
        except (ValueError, OSError):
            manifest = _read_manifest(self.folder)
            if manifest == self.manifest:
                raise
            self.manifest = manifest  # another process has committed other rows, and removed these
            return self.searchable(kind)
        return rows

    def commit(self, rows: dict[str, list[dict[str, Any]]], shards: dict[str, EmbeddingShards]) -> None:
        """
        Commit these rows; if that fails, or is killed, those before stay committed.

        Args:
            rows: of images and of texts, with the columns of `ROW_FEATURES`; those that were there before should come
                first, so that the FAISS index is extended and not made again.
            shards: with the embeddings of all their keys.
        """
        tables = {
            kind: pa.Table.from_pylist(rows[kind], schema=ROW_FEATURES[kind].arrow_schema) for kind in ROW_FEATURES
        }
        embeddings = {kind: shards[kind].select([row[KEY] for row in rows[kind]]) for kind in rows if rows[kind]}
        known = {kind: self._known_index(kind, embeddings[kind]) for kind in embeddings}
        if all(self._is_committed(kind, table, known.get(kind)) for kind, table in tables.items()):
            return
        news = replace(
            self.manifest, generation=self.manifest.generation + 1, rows={kind: len(rows[kind]) for kind in rows}
        )
        digests = {}
        for kind, table in tables.items():
            path = self.folder / _file(news, kind, ".arrow")
            write_table(path, table)
            digests[path.name] = hash_file(path)
            if rows[kind]:
                path = path.with_suffix(".faiss")
                index = _extended(known[kind], embeddings[kind])
                with atomic_write(path) as temporary:
                    index.save(str(temporary))
                digests[path.name] = hash_file(path)
        _write_manifest(self.folder, replace(news, digests=digests))
        self.manifest = replace(news, digests=digests)
        for path in self.folder.glob("*_rows-*"):
            if path.name not in digests:
                path.unlink()

    def _known_index(self, kind: str, embeddings: datasets.Dataset) -> FaissIndex | None:
        """The committed FAISS index, if it holds the first of these embeddings. Damage is logged."""
        if not self.manifest.rows.get(kind):
            return None
        try:
            rows = self.searchable(kind)
            if rows[KEY][:] != embeddings[KEY][: len(rows)]:
                return None
            index = rows.get_index(EMBEDDING)
            vectors = _vectors(index.faiss_index)
            for start in range(0, len(rows), ROWS_AT_ONCE):
                part = embeddings.select(range(start, min(start + ROWS_AT_ONCE, len(rows))))
                if not np.array_equal(_arrays(part)[:][EMBEDDING], vectors[start : start + ROWS_AT_ONCE]):
                    raise ValueError(f"{self.folder / _file(self.manifest, kind, '.faiss')}: holds other embeddings")
            return index
        except (ValueError, OSError) as error:
            logger.warning("%s; it is made again", str(error).removesuffix(f"; {self._fix}"))
            return None

    def _is_of_unit_vectors(self, index: Any, rows: int) -> bool:
        """Whether a FAISS index is of the only kind that is written here: exact, of as many embeddings of length 1."""
        faiss = require_faiss()
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(_vectors(index), axis=1) if isinstance(index, faiss.IndexFlat) else np.zeros(1)
        return (
            index.metric_type == faiss.METRIC_INNER_PRODUCT
            and (index.ntotal, index.d) == (rows, self.manifest.embedding_width)
            and bool(np.allclose(lengths, 1, atol=1e-2))
        )

    def _is_committed(self, kind: str, table: pa.Table, known: FaissIndex | None) -> bool:
        try:
            return (known is not None or not table.num_rows) and self.rows(kind).data.table.equals(table)
        except (ValueError, OSError):
            return False

    @property
    def _fix(self) -> str:
        return f"make it again with: {self._command}"

    @property
    def _command(self) -> str:
        return self.manifest.command(self.folder)

    def _checked(self, kind: str, suffix: str) -> Path:
        """A file of the committed generation, after a check of its content."""
        path = self.folder / _file(self.manifest, kind, suffix)
        # before anything parses it: FAISS trusts the sizes that a file names
        if not path.is_file() or hash_file(path) != self.manifest.digests.get(path.name):
            state = "is damaged" if path.is_file() else "is missing"
            raise ValueError(f"{path}: {state}; {self._fix}")
        return path


@contextmanager
def updating(folder: Path, manifest: Manifest) -> Iterator[ImageIndex]:
    """The index in `folder`, once no other process updates it, without what killed ones have left behind.

    Args:
        manifest: written where there is no index yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder / LOCK, f"updates {folder}"):
        for leftover in folder.glob(f"*{INCOMPLETE}"):
            leftover.unlink()
        if not (folder / MANIFEST).is_file():
            _write_manifest(folder, manifest)
        yield ImageIndex(folder)


def _vectors(index: Any) -> np.ndarray:
    """The embeddings `(N, E)` in a flat FAISS index: a view, which holds as long as the index."""
    return require_faiss().rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)


def _arrays(embeddings: datasets.Dataset) -> datasets.Dataset:
    return embeddings.with_format("numpy", columns=[EMBEDDING], dtype=np.float32)


def _extended(known: FaissIndex | None, embeddings: datasets.Dataset) -> FaissIndex:
    """Inner products, which are cosines since embeddings have length 1, with every row: exact."""
    if known is None:
        metric = require_faiss().METRIC_INNER_PRODUCT
        return embeddings.add_faiss_index(EMBEDDING, metric_type=metric).get_index(EMBEDDING)
    if (count := known.faiss_index.ntotal) < len(embeddings):
        known.add_vectors(_arrays(embeddings.select(range(count, len(embeddings)))), column=EMBEDDING)
    return known


def _file(manifest: Manifest, kind: str, suffix: str) -> str:
    return f"{NAMES[kind]}_rows-{manifest.generation}{suffix}"


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST, asdict(manifest))


def _absolute(name: str) -> str:
    """The name of a folder or file that holds anywhere; names on the Hub stay."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.exists(path) else name


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        state = "holds no index" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"{folder}: {state}; make one with: fusion-captioner index FOLDER --model CHECKPOINT --out {folder}"
        )
    fix = "delete the folder, or index into another one"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is not valid JSON ({error}); {fix}.") from error
    if not isinstance(document, dict) or "format_version" not in document:
        raise ValueError(f"{path}: is no description of an index; {fix}.")
    if document["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path}: `format_version` ({document['format_version']!r}) must be {FORMAT_VERSION}, which this version "
            f"of fusion-captioner reads; {fix}."
        )
    wrong = [
        each.name
        for each in fields(Manifest)
        if each.name not in document or not isinstance(document[each.name], each.type)  # type: ignore[arg-type]
    ]
    if wrong or len(document) != len(fields(Manifest)):
        raise ValueError(f"{path}: {', '.join(wrong) or 'some fields'} cannot be in an index; {fix}.")
    return Manifest(**document)

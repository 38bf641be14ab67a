"""An index to search images and texts in, on disk.

    INDEX/index.json            what made the index, and which generation of the files below is in force
    INDEX/images-00000.arrow    embeddings of images by content, and of texts in texts-00000.arrow: see embedding_shards.py
    INDEX/image_rows-1.arrow    generation 1: the images, row by row, and the texts in text_rows-1.arrow
    INDEX/image_rows-1.faiss    FAISS index of the same rows; likewise text_rows-1.faiss
    INDEX/image_hashes.feather  hashes of image files, so that none is read twice

Every file is written aside and renamed, and `index.json` comes last: whoever is killed leaves the generation before in
force and all complete shards in place, from which the next run goes on. Shards are what is computed; generations are
made from them in moments, and made again where they are damaged.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import blake2b, file_digest
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.search import FaissIndex
from filelock import FileLock

from fusion_captioner.files import check_output_folder
from fusion_captioner.search.embedding_shards import (
    EMBEDDING,
    INCOMPLETE,
    KEY,
    EmbeddingShards,
    read_table,
    write_table,
    written_aside,
)

FORMAT_VERSION = 1
MANIFEST = "index.json"
LOCK = ".lock"
TEXT, TEXTS = datasets.Value("string"), datasets.List(datasets.Value("string"))
# What is told of a row, besides its key. `split` and `row` say where an image stands that is no file.
ROW_FEATURES = {
    "images": datasets.Features(
        {"image": TEXT, "captions": TEXTS, "split": TEXT, "row": datasets.Value("int64"), KEY: TEXT}
    ),
    "texts": datasets.Features({"text": TEXT, "images": TEXTS, KEY: TEXT}),
}
NAMES = {"images": "image", "texts": "text"}


@dataclass(frozen=True)
class Manifest:
    """What `index.json` says.

    Attributes:
        model, revision: checkpoint that made the embeddings, as it was named.
        fingerprint: of its weights and preprocessing.
        preprocessing: of its images.
        embedding_width: E.
        source, layout, split: the folder or data set that is indexed, as for the command.
        generation: number of the files in force, 0 before the first are complete.
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
    generation: int = 0
    rows: dict = field(default_factory=dict)
    digests: dict = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def command(self, folder: Path) -> str:
        """What brings the index in `folder` up to date."""
        flags = [self.source, "--model", self.model, "--out", str(folder)]
        for name, value, default in (
            ("--layout", self.layout, "auto"),
            ("--split", self.split, None),
            ("--revision", self.revision, "main"),
        ):
            flags += [] if value is None or value == default else [name, value]
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
    # whoever was killed at the very start has left these
    if any(path.name != LOCK and not path.name.endswith(INCOMPLETE) for path in folder.iterdir()):
        raise ValueError(f"--out ({folder}): is neither empty nor an index; name another folder.")


class ImageIndex:
    """An index that is there.

    Args:
        folder: of the index.

    Raises:
        FileNotFoundError: the folder is not there, or holds no index.
        ValueError: `index.json` is damaged, or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)

    @property
    def hashes_file(self) -> Path:
        return self.folder / "image_hashes.feather"

    def shards(self, kind: str) -> EmbeddingShards:
        """The embeddings of images or texts."""
        return EmbeddingShards(self.folder, kind, self.manifest.embedding_width)

    def rows(self, kind: str) -> datasets.Dataset:
        """The rows in force.

        Raises:
            ValueError: there are none yet, or their file is damaged.
        """
        if not self.manifest.generation:
            raise ValueError(f"{self.folder}: the index was never finished; go on with: {self._command}")
        return read_table(self._checked(kind, ".arrow"), ROW_FEATURES[kind])

    def searchable(self, kind: str) -> datasets.Dataset:
        """The rows in force with their FAISS index, named `EMBEDDING`.

        Raises:
            ValueError: there are no such rows, or a file is damaged.
        """
        try:
            rows = self.rows(kind)
            if not len(rows):
                raise ValueError(f"{self.folder}: holds no {kind} to find; index a data set with captions.")
            rows.load_faiss_index(EMBEDDING, str(self._checked(kind, ".faiss")))
        except (ValueError, OSError):
            manifest = _read_manifest(self.folder)
            if manifest == self.manifest:
                raise
            self.manifest = manifest  # another process has put other rows in force, and removed these
            return self.searchable(kind)
        return rows

    def put_in_force(self, rows: dict[str, list[dict[str, Any]]], shards: dict[str, EmbeddingShards]) -> None:
        """
        Put these rows in force; if it fails, or is killed, those before stay in force.

        Args:
            rows: of images and of texts, with the columns of `ROW_FEATURES`; those that were there before should come
                first, so that the FAISS index is extended and not made again.
            shards: with the embeddings of all their keys.
        """
        tables = {
            kind: pa.Table.from_pylist(rows[kind], schema=ROW_FEATURES[kind].arrow_schema) for kind in ROW_FEATURES
        }
        if all(self._is_in_force(kind, table) for kind, table in tables.items()):
            return
        news = replace(
            self.manifest, generation=self.manifest.generation + 1, rows={kind: len(rows[kind]) for kind in rows}
        )
        digests = {}
        for kind, table in tables.items():
            path = self.folder / _file(news, kind, ".arrow")
            write_table(path, table)
            digests[path.name] = _digest(path)
            if rows[kind]:
                path = path.with_suffix(".faiss")
                index = self._faiss_index(kind, shards[kind].select([row[KEY] for row in rows[kind]]))
                with written_aside(path) as aside:
                    index.save(str(aside))
                digests[path.name] = _digest(path)
        _write_manifest(self.folder, replace(news, digests=digests))
        self.manifest = replace(news, digests=digests)
        for path in self.folder.glob("*_rows-*"):
            if path.name not in digests:
                path.unlink()

    def _faiss_index(self, kind: str, embeddings: datasets.Dataset) -> FaissIndex:
        """Inner products, which are cosines since embeddings have length 1, with every row: exact."""
        try:
            known = self.searchable(kind)
        except (ValueError, OSError):  # there is none, or it is damaged
            known = None
        if known is None or known[KEY][:] != embeddings[KEY][: len(known)]:
            metric = require_faiss().METRIC_INNER_PRODUCT
            return embeddings.add_faiss_index(EMBEDDING, metric_type=metric).get_index(EMBEDDING)
        index = known.get_index(EMBEDDING)
        if len(known) < len(embeddings):
            news = embeddings.select(range(len(known), len(embeddings)))
            index.add_vectors(news.with_format("numpy", columns=[EMBEDDING], dtype=np.float32), column=EMBEDDING)
        return index

    def _is_in_force(self, kind: str, table: pa.Table) -> bool:
        try:
            if table.num_rows:
                self._checked(kind, ".faiss")
            return self.rows(kind).data.table.equals(table)
        except (ValueError, OSError):
            return False

    @property
    def _command(self) -> str:
        return self.manifest.command(self.folder)

    def _checked(self, kind: str, suffix: str) -> Path:
        """A file of the generation in force, whose content is what was written."""
        path = self.folder / _file(self.manifest, kind, suffix)
        # before anything parses it: FAISS trusts the sizes that a file names
        if not path.is_file() or _digest(path) != self.manifest.digests.get(path.name):
            state = "is damaged" if path.is_file() else "is missing"
            raise ValueError(f"{path}: {state}; make it again from the embeddings with: {self._command}")
        return path


@contextmanager
def updating(folder: Path, manifest: Manifest) -> Iterator[ImageIndex]:
    """The index in `folder`, once no other process is at it, without what killed ones have left behind.

    Args:
        manifest: of the index that is made where there is none, without rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        for leftover in folder.glob(f"*{INCOMPLETE}"):
            leftover.unlink()
        if not (folder / MANIFEST).is_file():
            _write_manifest(folder, manifest)
        yield ImageIndex(folder)


def _file(manifest: Manifest, kind: str, suffix: str) -> str:
    return f"{NAMES[kind]}_rows-{manifest.generation}{suffix}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    with written_aside(folder / MANIFEST) as aside:
        aside.write_text(json.dumps(asdict(manifest), indent=1, ensure_ascii=False), encoding="utf-8")


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not valid JSON ({error}); {fix}.") from error
    if not isinstance(document, dict) or "format_version" not in document:
        raise ValueError(f"{path}: is no description of an index; {fix}.")
    if document["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path}: `format_version` ({document['format_version']!r}) must be {FORMAT_VERSION}, which this version of "
            f"fusion-captioner reads; {fix}."
        )
    wrong = [
        each.name
        for each in fields(Manifest)
        if each.name not in document or not isinstance(document[each.name], each.type)  # type: ignore[arg-type]
    ]
    if wrong or len(document) != len(fields(Manifest)):
        raise ValueError(f"{path}: {', '.join(wrong) or 'some fields'} cannot be in an index; {fix}.")
    return Manifest(**document)

"""
Captions of collections that one machine is too small for, by Ray Data: `fusion-captioner caption --engine ray`.

The names are divided into shares, each some images, or one file of many (Parquet, WebDataset). Each core of the
cluster has a captioner, which reads a share itself, from any store that fsspec knows, and returns its captions. What a
worker that dies had in hand, Ray does again. This process alone writes the captions, so that each is written once.
"""

import logging
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from fusion_captioner.data.image_files import find_images, image_path_problem, photo_suffixes, read_stored
from fusion_captioner.data.names import FILE_COLUMNS, IMAGE_COLUMNS, choose_column
from fusion_captioner.files import INCOMPLETE, expanded
from fusion_captioner.given_values import check_text
from fusion_captioner.image_downloads import MAX_DOWNLOAD_BYTES
from fusion_captioner.image_loading import is_url, load_resized_image
from fusion_captioner.inference.caption_formats import CaptionFormat, caption_format
from fusion_captioner.inference.captioner import load_on_runtime
from fusion_captioner.inference.image_batches import Summary
from fusion_captioner.inference.launched_process import usable_cores
from fusion_captioner.inference.runtimes import import_runtime
from fusion_captioner.printing import error_text, print_note

ARCHIVES = (".parquet", ".tar")
SHARE = 64  # images that are done again when a worker dies, unless they come in one file

Item = TypeVar("Item")
# An image's name, and its path or content; or what is wrong with it
NamedImage = tuple[str, str | bytes | ValueError]


@dataclass(frozen=True)
class Captioning:
    """
    How images are captioned; every worker gets it.

    Args:
        model: arguments of [`load_on_runtime`].
        settings, prompt, language, seed: see `Captioner.caption`.
        batch_size: images per batch.
        worded: brings the captions of an image into the words that are wanted; raises ValueError where that fails.
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    prompt: str
    language: str | None
    seed: int
    batch_size: int
    worded: Callable[[list[str]], list[str]]


class ShareCaptioner:
    """The captioner of a core."""

    def __init__(self, captioning: Captioning) -> None:
        self.captioning = captioning
        self.captioner = load_on_runtime(**captioning.model, num_threads=1)

    def __call__(self, shares: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        """
        Args:
            shares: `start`, the place of a share's first name in the collection, and its `names`.

        Returns:
            batches of `image`, `captions` (empty where that failed) and `problem` (empty where it did not).
        """
        for start, names in zip(shares["start"], shares["names"], strict=True):
            for place, batch in enumerate(_batched(images_of(names), self.captioning.batch_size)):
                rows = self._captions(batch, self.captioning.seed + int(start) + place * self.captioning.batch_size)
                yield {
                    "image": [row[0] for row in rows],
                    "captions": [row[1] for row in rows],
                    "problem": [row[2] for row in rows],
                }

    def _captions(self, images: list[NamedImage], seed: int) -> list[tuple[str, list[str], str]]:
        pictures: dict[int, Any] = {}
        problems: dict[int, str] = {}
        for index, (name, image) in enumerate(images):
            try:
                if isinstance(image, ValueError):
                    raise image
                pictures[index] = load_resized_image(image, self.captioner.image_settings, name)
            except (ValueError, OSError) as error:
                problems[index] = error_text(error)
        captions: dict[int, list[str]] = {}
        if pictures:
            todo = self.captioning
            found = self.captioner.caption(
                list(pictures.values()), todo.prompt, language=todo.language, seed=seed, **todo.settings
            )
            for index, texts in zip(pictures, found, strict=True):
                try:
                    captions[index] = todo.worded(texts)
                except ValueError as error:
                    problems[index] = f"{images[index][0]}: {error}"
        return [(name, captions.get(index, []), problems.get(index, "")) for index, (name, _) in enumerate(images)]


def shares_of(names: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """
    A collection in shares of work, each with `start` and `names`.

    Args:
        names: files, folders, and their URLs in stores that fsspec knows, such as `s3://bucket/photos`.

    Returns:
        shares, and what is wrong with names that are not there.
    """
    images: list[str] = []
    archives: list[str] = []
    problems = []
    for name in names:
        try:
            found = _remote_files(name) if "://" in name else _local_files(name)
        except (ValueError, OSError, ImportError) as error:
            problems.append(f"{name}: cannot be found ({error_text(error)})" if "://" in name else error_text(error))
        else:
            archives += [file for file in found if file.endswith(ARCHIVES)]
            images += [file for file in found if not file.endswith(ARCHIVES)]
    parts = [*_batched(images, SHARE)] + [[archive] for archive in archives]
    return [{"start": place * SHARE, "names": part} for place, part in enumerate(parts)], problems


def _local_files(name: str) -> list[str]:
    path = expanded(name)
    if not path.is_dir():
        return list(find_images([name]))
    archives = sorted(str(file) for file in path.rglob("*") if file.name.endswith(ARCHIVES) and file.is_file())
    try:
        return list(find_images([name])) + archives
    except ValueError:  # a folder without photos
        if not archives:
            raise
        return archives


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _remote_files(name: str) -> list[str]:
    if is_url(name):
        raise ValueError("--engine ray fetches no http(s) URLs; copy the images to a store")
    import fsspec  # only this engine needs it

    store, path = fsspec.core.url_to_fs(name)
    if not store.isdir(path):
        if not store.exists(path):
            raise FileNotFoundError("no such file or folder; check the URL")
        return [name]
    wanted = (*photo_suffixes(), *ARCHIVES)
    hidden = [part for part in path.split("/") if part.startswith(".")]
    files = [file for file in sorted(store.find(path)) if file.lower().endswith(wanted)]
    files = [file for file in files if sum(part.startswith(".") for part in file.split("/")) <= len(hidden)]
    if not files:
        raise ValueError("the folder holds no images; check the URL")
    return [store.unstrip_protocol(file) for file in files]


def images_of(names: Sequence[str]) -> Iterator[NamedImage]:
    """The images of a share, one after the other; what is wrong with a file is said in the place of its images."""
    for name in names:
        try:
            if name.endswith(".parquet"):
                yield from _parquet_images(name)
            elif name.endswith(".tar"):
                yield from _webdataset_images(name)
            else:
                yield name, _stored(name) if "://" in name else name
        except Exception as error:  # stores and parsers raise all sorts
            yield name, ValueError(f"{name}: cannot be read ({' '.join(error_text(error).split())})")


def _stored(url: str) -> bytes | ValueError:
    try:
        return read_stored(url)
    except ValueError as error:
        return error


def _parquet_images(name: str) -> Iterator[NamedImage]:
    """
    Rows that hold an image, as bytes or as `datasets` writes it (`bytes` and `path`), or that name a file next to the
    table. Where a row has a path, the image has that name, or else the number of its row.
    """
    import fsspec
    import pyarrow.parquet

    folder = name.rpartition("/")[0] if "://" in name else os.path.dirname(os.path.abspath(name))
    with fsspec.open(name, "rb") as file:
        table = pyarrow.parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        column = choose_column(None, (*IMAGE_COLUMNS, *FILE_COLUMNS), columns, "IMAGE")
        row = 0
        for batch in table.iter_batches(batch_size=SHARE, columns=[column]):
            for value in batch.column(0).to_pylist():
                if isinstance(value, bytes | str):
                    value = {"bytes" if isinstance(value, bytes) else "path": value}
                path, content = ((value or {}).get(key) for key in ("path", "bytes"))
                yield _row_image(f"{name}#{row}", path, content, folder)
                row += 1


def _row_image(row: str, path: str | None, content: bytes | None, folder: str) -> NamedImage:
    if content is not None:
        return path or row, content
    if not path:
        return row, ValueError(f"{row}: has no image")
    if "://" not in folder:
        file = os.path.join(folder, path) if "://" not in path else path
        problem = image_path_problem(file, folder, allow_urls=False)
        return path, ValueError(f"{path}: {problem}") if problem else file
    if "://" in path or "::" in path or path.startswith("/") or ".." in path.split("/"):
        return path, ValueError(f"{path}: lies outside the folder of the data")
    return path, _stored(f"{folder}/{path}")


def _webdataset_images(name: str) -> Iterator[NamedImage]:
    """The photos of an archive; other members, such as captions, are left out."""
    import fsspec

    suffixes = photo_suffixes()
    with fsspec.open(name, "rb") as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            if not member.isfile() or os.path.splitext(member.name)[1].lower() not in suffixes:
                continue
            if member.size > MAX_DOWNLOAD_BYTES:
                yield member.name, ValueError(f"{member.name}: more than {MAX_DOWNLOAD_BYTES // 1024**2} MiB")
            else:
                yield member.name, archive.extractfile(member).read()  # type: ignore[union-attr]


class CaptionRows:
    """
    The file of captions, there when it is whole.

    Args:
        out: path or URL.
        format: None: Parquet, with the columns `image`, `caption` and `captions`.
    """

    def __init__(self, out: str, format: CaptionFormat | None) -> None:
        import fsspec

        self.format = format
        self.store, self.path = fsspec.core.url_to_fs(out)
        if self.store.exists(self.path):
            raise FileExistsError(f"--out ({out}): exists; name another file, or delete it.")
        self._incomplete = f"{self.path}.{os.urandom(4).hex()}{INCOMPLETE}"
        self._file = self.store.open(self._incomplete, "wb")
        self._table: Any = None
        if format is not None:
            self._file.write(format.header)
        self._is_empty = True

    def write(self, rows: list[tuple[str, list[str]]]) -> int:
        """Write what the format can hold; returns how many images it cannot, of which each is printed."""
        kept, lines = [], []
        for image, captions in rows:
            try:
                if self.format is None:
                    check_text(image, "its name")
                else:
                    lines.append(self.format.row(image, captions))
                kept.append((image, captions))
            except ValueError as error:
                print_note(f"{image}: {error}")
        if kept:
            self._write(kept, b"".join(lines))
            self._is_empty = False
        return len(rows) - len(kept)

    def _write(self, rows: list[tuple[str, list[str]]], lines: bytes) -> None:
        if self.format is not None:
            self._file.write(lines)
            self._file.flush()
            return
        import pyarrow
        import pyarrow.parquet

        batch = pyarrow.table(
            {
                "image": pyarrow.array([image for image, _ in rows], pyarrow.string()),
                "caption": pyarrow.array([captions[0] for _, captions in rows], pyarrow.string()),
                "captions": pyarrow.array([captions for _, captions in rows], pyarrow.list_(pyarrow.string())),
            }
        )
        self._table = self._table or pyarrow.parquet.ParquetWriter(self._file, batch.schema)
        self._table.write_table(batch)

    def close(self) -> None:
        """Leave what was written under its temporary name; a file without captions is removed."""
        if self._table is not None:
            self._table.close()
        self._file.close()
        if self._is_empty and self.store.exists(self._incomplete):
            self.store.rm(self._incomplete)

    def finish(self) -> None:
        """Give the file its name; there is none without captions."""
        self.close()
        if not self._is_empty:
            self.store.mv(self._incomplete, self.path)


def caption_on_ray(names: Sequence[str], captioning: Captioning, out: str, format: str | None) -> Summary:
    """
    Caption a collection on the cluster that `RAY_ADDRESS` names, or on the cores of this machine.

    Args:
        names: see [`shares_of`].
        captioning: how.
        out: the file of captions, a path or a URL; `.parquet` is a table with the columns `image`, `caption` and
            `captions`.
        format: of other files, see [`caption_format`].

    Returns:
        how many images there were; what is wrong with one is printed.

    Raises:
        ImportError: Ray is not installed.
        FileExistsError: `out` exists.
        ValueError, OSError: the captioner cannot be loaded; a worker failed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its own notes are about its inside
    ray, data = (import_runtime(module, "ray") for module in ("ray", "ray.data"))
    load_on_runtime(**captioning.model)  # what is wrong with it is said here, in one line
    shares, problems = shares_of(names)
    for problem in problems:
        print_note(problem)
    bad = images = len(problems)
    if not shares:
        return Summary(images, bad)
    is_table = out.endswith(".parquet") and format is None
    rows = CaptionRows(
        out, None if is_table else caption_format(format, out, captioning.settings["num_return_sequences"])
    )
    cores = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": usable_cores(), "include_dashboard": False}
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **cores)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        workers = min(len(shares), max(1, int(ray.cluster_resources()["CPU"])))
        done = data.from_items(shares, override_num_blocks=len(shares)).map_batches(
            ShareCaptioner,
            fn_constructor_args=(captioning,),
            batch_size=1,
            num_cpus=1,
            compute=data.ActorPoolStrategy(size=workers),
        )
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            captioned = []
            for image, captions, problem in zip(
                *(batch[each].to_pylist() for each in ("image", "captions", "problem"))
            ):
                images += 1
                if problem:
                    print_note(problem)
                    bad += 1
                else:
                    captioned.append((image, captions))
            bad += rows.write(captioned)
    except ray.exceptions.RayError as error:
        raise ValueError(f"--engine ray: a worker failed ({str(error).strip().splitlines()[-1]})") from error
    finally:
        ray.shutdown()
        rows.close()
    rows.finish()
    return Summary(images, bad)

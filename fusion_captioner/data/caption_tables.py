"""Captions from tables: a Hub repository without script, or local Parquet or WebDataset shards, columns by name."""

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa

from fusion_captioner.data.annotated_images import BadExamples, SkippedExample, clean_captions, log_skipped
from fusion_captioner.data.caption_folder import FEATURES, READER_VERSION
from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.data.image_files import MISSING_IMAGE, ImageFolder, image_path_problem, image_problem
from fusion_captioner.data.names import (
    ID_COLUMNS,
    IMAGE_COLUMNS,
    captions_at,
    choose_captions,
    choose_column,
    choose_splits,
    id_at,
)

# pandas writes the first, polars the others.
TEXT_TYPES = [datasets.Value(name) for name in ("string", "large_string", "string_view")]
# One row of the source after its check: the columns of the result, and what was left out of it.
TEXT_FEATURES = datasets.Features({name: FEATURES[name] for name in ("captions", "image_id")})
PROBLEM = {"file": datasets.Value("string"), "reason": datasets.Value("string"), "is_bad_file": datasets.Value("bool")}
CHECKED_TEXT_FEATURES = datasets.Features(TEXT_FEATURES | {"problems": datasets.List(PROBLEM)})
CHECKED_FEATURES = datasets.Features(FEATURES | CHECKED_TEXT_FEATURES)


class Columns(NamedTuple):
    """The columns of the source; `image_id` None: an image is known by its content."""

    image: str
    captions: list[str]
    image_id: str | None


def load_caption_tables(
    source: CaptionSource,
) -> tuple[datasets.DatasetDict | datasets.IterableDatasetDict, list[SkippedExample]]:
    """Load tables with `datasets.load_dataset` and bring them to the columns `image`, `captions`, `image_id`.

    Rows with the same id are joined into one (not when streaming). The source's Arrow files are used as they are:
    images are not copied. The check of every row is kept by `datasets`, as any `map`.

    Args:
        source: with absolute paths, and the layout `"hub"`, `"parquet"` or `"webdataset"`.

    Returns:
        The splits, and what was left out of them (with `streaming`, that is logged only).

    Raises:
        FileNotFoundError, ValueError: one line with the source and the fix.
    """
    tables = _load(source)
    images_path = source.images_path
    chosen = choose_splits(list(tables), source.splits)
    result: dict[str, Any] = {}
    skipped: list[SkippedExample] = []
    for split, names in chosen.items():
        table = datasets.concatenate_datasets([tables[name] for name in names])
        features = table.features or dict.fromkeys(next(iter(table), {}))  # some streams know no types, only values
        try:
            columns = _choose_columns(features, source)
        except ValueError as error:
            raise ValueError(f"{source.source}: {error}") from None
        if source.streaming and table.features:
            table = table.decode(False)  # of all columns: a stream decodes those too that nobody asks for
        names_files = features[columns.image] in TEXT_TYPES
        if names_files and images_path is None:
            raise ValueError(
                f"{source.source}: column {columns.image!r} holds text; give `images_folder`, the folder of the files "
                "that it names, or `image_column`, a column of images."
            )
        if not _may_be_images(features[columns.image]):
            raise ValueError(
                f"{source.source}: column {columns.image!r} holds {features[columns.image]}, no images; give "
                f"`image_column`."
            )
        if features[columns.image] is not None and not names_files:
            table = table.cast_column(columns.image, datasets.Image(decode=False))
        folder = str(images_path or _folder_of(source.source, source.layout))
        check = partial(
            check_row,
            columns=columns,
            folder=folder,
            allow_urls=source.allow_urls,
            split=split,
            source=source.source,
            skip=source.skip_bad_images,
            reader_version=READER_VERSION,
        )
        if source.streaming:
            rows = table.map(check, remove_columns=list(features), features=CHECKED_FEATURES)
            result[split] = rows.filter(_has_captions).remove_columns("problems")
        else:
            names_files = names_files or _lacks_bytes(table, columns.image)
            result[split], bad = _join_rows(table, check, columns.image, names_files, split, source.source)
            skipped += bad
    log_skipped(skipped, source.source)
    return (datasets.IterableDatasetDict if source.streaming else datasets.DatasetDict)(result), skipped


def _lacks_bytes(table: datasets.Dataset, column: str) -> bool:
    """Whether some images of the column are given by their path alone."""
    chunks = table.data.column(column).chunks
    return any(pa.types.is_struct(chunk.type) and chunk.field("bytes").null_count > 0 for chunk in chunks)


def _folder_of(source: str, layout: str) -> Path:
    """The folder that rows may name files in: that of the tables, or where `datasets` puts what it downloads."""
    if layout == "hub":
        return Path(datasets.config.HF_CACHE_HOME)
    path = Path(source)
    return path if path.is_dir() else path.parent


def _load(source: CaptionSource) -> dict[str, Any]:
    name, layout = source.source, source.layout
    options: dict[str, Any] = {"streaming": source.streaming, "cache_dir": source.cache_dir}
    if layout == "hub":
        options |= {"path": name, "name": source.config_name, "revision": source.revision}
    elif os.path.isfile(name):
        options |= {"path": layout, "data_files": {"train": name}}
    else:
        options |= {"path": layout, "data_dir": name}
    try:
        return datasets.load_dataset(**options)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError, ImportError) as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = " ".join(str(cause or error).split())
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        if layout == "hub":
            raise kind(
                f"{name}: is no folder here, and `datasets` cannot load it from the Hub ({reason}); check the name."
            ) from error
        raise kind(f"{name}: `datasets` cannot load it as {layout!r}: {reason}") from error


def _choose_columns(features: Mapping[str, Any], source: CaptionSource) -> Columns:
    names = list(features)
    of_images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    usual_images = of_images if len(of_images) == 1 else IMAGE_COLUMNS
    if source.id_column is None:
        image_id = next((name for name in ID_COLUMNS if name in names), None)
    else:
        image_id = choose_column(source.id_column, (), names, "id_column")
    return Columns(
        image=choose_column(source.image_column, usual_images, names, "image_column"),
        captions=choose_captions(source.caption_column, names),
        image_id=image_id,
    )


def _may_be_images(feature: Any) -> bool:
    plain = (*TEXT_TYPES, datasets.Value("binary"), datasets.Value("large_binary"), None)
    return (
        isinstance(feature, datasets.Image) or feature in plain or (isinstance(feature, dict) and "bytes" in feature)
    )


def check_row(
    row: dict[str, Any],
    *,
    columns: Columns,
    folder: str,
    allow_urls: bool,
    split: str,
    source: str,
    skip: bool,
    reader_version: int,
) -> dict[str, Any]:
    """One row of the source as `image`, `captions`, `image_id` and the `problems` found in it.

    A row with a bad image has no captions. Without an id the digest of the image is one, so that rows that repeat an
    image, one caption each, are still the same image. Files lie in `folder`. `reader_version` is there for the key of
    the cache that `datasets` keeps of the result.

    Raises:
        FileNotFoundError, ValueError: a problem was found, and `skip` is false.
    """
    bad = BadExamples(skip)
    image = row[columns.image]
    problem = None
    if isinstance(image, bytes):
        image = {"path": None, "bytes": image}
    elif isinstance(image, str):
        image = {"path": image, "bytes": None}
    image = image or {"path": None, "bytes": None}
    if image["bytes"] is None and image["path"] is not None:
        path = image["path"]
        if "://" not in path and "::" not in path:
            with suppress(ValueError):  # which leads out of the folder: said below
                path = ImageFolder(Path(folder)).resolve(path)
        problem = image_path_problem(path, folder, allow_urls)
        image = {"path": path, "bytes": None}
    digest = blake2b(image["bytes"] or (image["path"] or "").encode(), digest_size=8).hexdigest()
    image_id = id_at(row, columns.image_id) or digest
    file = image["path"] or f"{source} ({image_id})"
    problem = problem or _problem(image)
    if problem:
        error = FileNotFoundError if problem == MISSING_IMAGE else ValueError
        bad.report(SkippedExample(split, image_id, file, problem, is_bad_file=True), error)
        captions = []
    else:
        captions = clean_captions(captions_at(row, columns.captions), split, image_id, file, bad)
    problems = [{"file": each.file, "reason": each.reason, "is_bad_file": each.is_bad_file} for each in bad.skipped]
    return {"image": image, "captions": captions, "image_id": image_id, "problems": problems}


def _problem(image: dict[str, Any]) -> str | None:
    if image["bytes"] is not None:
        return image_problem(image["bytes"])
    if image["path"] is None:
        return MISSING_IMAGE
    if "://" in image["path"]:
        return None  # streamed from afar: it is read when the collator decodes it, not twice
    return image_problem(image["path"])


def _has_captions(row: dict[str, Any]) -> bool:
    return bool(row["captions"])


def _join_rows(
    table: datasets.Dataset, check: Any, image_column: str, names_files: bool, split: str, source: str
) -> tuple[datasets.Dataset, list[SkippedExample]]:
    """Check all rows, and join those of one image.

    The joined captions are in the first row of their image, in a table as long as the source, so that the source's
    column of images is used where it lies (memory-mapped) and a selection of rows leaves the others out.
    """
    checked = table.map(
        check if names_files else partial(_without_image, check=check),
        remove_columns=table.column_names,
        features=CHECKED_FEATURES if names_files else CHECKED_TEXT_FEATURES,
        desc=f"checking {split}",
    )
    images = checked.select_columns("image") if names_files else _only(table, image_column)
    ids, captions = checked["image_id"][:], checked["captions"][:]
    skipped = [
        SkippedExample(split, image_id, **problem)
        for image_id, problems in zip(ids, checked["problems"][:], strict=True)
        for problem in problems
    ]
    first_row: dict[str, int] = {}
    joined: list[list[str]] = [[] for _ in ids]
    for row, (image_id, texts) in enumerate(zip(ids, captions, strict=True)):
        if texts:
            joined[first_row.setdefault(image_id, row)] += texts
    if not first_row:
        raise ValueError(f"{source}: split {split!r} has no image with a caption.")
    if len(first_row) == len(ids):
        return datasets.concatenate_datasets(
            [images, checked.select_columns(["captions", "image_id"])], axis=1
        ), skipped
    texts = datasets.Dataset.from_dict({"captions": joined, "image_id": ids}, features=TEXT_FEATURES)
    return datasets.concatenate_datasets([images, texts], axis=1).select(first_row.values()), skipped


def _without_image(row: dict[str, Any], check: Any) -> dict[str, Any]:
    checked = check(row)
    del checked["image"]
    return checked


def _only(table: datasets.Dataset, image_column: str) -> datasets.Dataset:
    images = table.select_columns(image_column)
    return images if image_column == "image" else images.rename_column(image_column, "image")

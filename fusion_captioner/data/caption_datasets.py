"""START HERE for data: one loader for every layout, with the columns `image`, `captions`, `image_id` and named
splits."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow.compute as pc

from fusion_captioner.data.annotated_images import SkippedExample
from fusion_captioner.data.caption_folder import FEATURES, load_caption_folder
from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.data.caption_tables import load_caption_tables
from fusion_captioner.data.layouts import LAYOUTS
from fusion_captioner.data.row_files import table_form
from fusion_captioner.data.row_layouts import unfit_files
from fusion_captioner.files import expanded

if TYPE_CHECKING:  # the arguments import transformers, which reading captions does without
    from fusion_captioner.data.arguments import DataArguments

logger = logging.getLogger(__name__)

# Layouts that `datasets` reads itself: what a folder holds, for messages, and the suffix of its files
TABLES = {"hub": ("", ""), "parquet": ("*.parquet", ".parquet"), "webdataset": ("*.tar (WebDataset)", ".tar")}
TABLE_OPTIONS = {"images_folder", "image_column", "caption_column", "id_column"}
HUB_OPTIONS = {"config_name", "revision"}
# Endings of files with captions; nobody calls a repository so.
FILE_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".tar", ".caption")
# `namespace/name` or `name`, as the Hub spells repositories.
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_caption_dataset(
    source: str | Path | CaptionSource, *, skipped: list[SkippedExample] | None = None, **options: Any
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Images and their captions, in any of these layouts.

    | layout | `source` |
    |---|---|
    | `"coco"` | a folder with `annotations/captions_<split>.json` and a folder of images for each split |
    | `"karpathy"` | a folder with `dataset_NAME.json`, or that file; COCO's images in `train2014/`, `val2014/` |
    | `"imagefolder"` | a folder with `<split>/metadata.jsonl`, or `metadata.csv`, next to the images |
    | `"table"` | a folder with `captions.txt`, `*.csv`, `*.tsv` or `Flickr8k.token.txt`, or that file |
    | `"json"` | a folder with a JSON list, or JSON lines, of `{image, caption}` or `{image, captions}`, or that file |
    | `"sidecar"` | a folder with `photo.txt` or `photo.caption` next to each photo, one caption per line |
    | `"parquet"`, `"webdataset"` | a folder with shards, or one shard |
    | `"hub"` | the name of a Hub repository without script |

    Splits get the names `train`, `val` and `test` whatever the source calls them (`train2017`, `validation`, `dev`);
    other names stay. Karpathy's `restval` is part of `train` unless `splits` says otherwise.

    Images stay undecoded; annotations, the presence of every image and its header are checked once. The result is kept
    as Arrow files by `datasets`: the next call with unchanged annotation files reads neither annotations nor images.
    (So an image that is deleted later is missed only where it is decoded, in the collator.)

    Args:
        source: path or name, see above; or a [`~fusion_captioner.data.caption_source.CaptionSource`].
        skipped: a list that is extended by what was left out (when streaming, that is logged only).
        options: fields of `CaptionSource`, such as `layout`, `splits`, `images_folder`, `streaming`,
            `skip_bad_images`.

    Returns:
        Splits with the columns `image` (`datasets.Image(decode=False)`: `path` or `bytes`), `captions` (list of str,
        white space made single blanks) and `image_id` (str, unique in its split).

    Raises:
        FileNotFoundError: a folder, annotation file or image is not there.
        ValueError: malformed annotations, an annotation without image, an image without caption, an empty caption, an
            unreadable image, a `file_name` that leaves the image folder, or an argument that does not fit. The message
            is one line that names the file and the fix.
    """
    wanted = CaptionSource.of(source, **options) if isinstance(source, CaptionSource) else None
    wanted = resolve_source(wanted or CaptionSource(str(source), **options))
    if wanted.layout in LAYOUTS:
        result, left_out = load_caption_folder(wanted, annotation_files(wanted))
    else:
        result, left_out = load_caption_tables(wanted)
    if wanted.val_fraction is not None:
        result = _with_val(result, wanted)
    if skipped is not None:
        skipped += left_out
    return result


def resolve_source(wanted: CaptionSource) -> CaptionSource:
    """
    A source with its layout, and with absolute paths.

    Raises:
        FileNotFoundError, ValueError: as [`load_caption_dataset`], for what is wrong with the source as a whole.
    """
    if wanted.layout != "auto" and wanted.layout not in (*LAYOUTS, *TABLES):
        names = ", ".join(map(repr, (*LAYOUTS, *TABLES)))
        raise ValueError(f"`layout` ({wanted.layout!r}) must be 'auto' or one of {names}.")
    layout = detect_layout(wanted) if wanted.layout == "auto" else wanted.layout
    images_path, path = wanted.images_path, wanted.path
    _refuse_unused(wanted, layout)
    if layout != "hub" and not path.exists():
        raise FileNotFoundError(f"{wanted.source}: no such file or folder.")
    return replace(
        wanted,
        source=wanted.source if layout == "hub" else str(path),
        layout=layout,
        images_folder=None if images_path is None else str(images_path),
        cache_dir=None if wanted.cache_dir is None else str(expanded(wanted.cache_dir)),
    )


def annotation_files(source: CaptionSource) -> list[Path]:
    """
    The files of a source whose layout is in `LAYOUTS`.

    Raises:
        FileNotFoundError: there are none.
    """
    path, layout = source.path, source.layout
    files = [path] if path.is_file() else LAYOUTS[layout].files(source)
    if not files:
        found = "".join(f" Found instead: {problem}" for problem in unfit_files(source)[:1])
        raise FileNotFoundError(f"{path}: no {LAYOUTS[layout].holds}, which the layout {layout!r} needs.{found}")
    return files


def detect_layout(source: CaptionSource) -> str:
    """The layout of a folder or file by what is there, which is logged; of what is neither, `"hub"`.

    Raises:
        FileNotFoundError: neither a folder or file nor a possible name of a Hub repository.
        ValueError: the folder holds nothing known, or more than one layout; the message says what it holds.
    """
    name, path = source.source, source.path
    if not path.exists():
        if HUB_NAME.fullmatch(name) and not name.startswith(".") and path.suffix not in FILE_ENDINGS:
            return "hub"
        raise FileNotFoundError(f"{name}: no such file or folder, and no name of a Hub repository.")
    layouts = find_layouts(source)
    if len(layouts) > 1:
        raise ValueError(
            f"{name}: the folder holds more than one layout; give `layout`, one of {', '.join(layouts)} (--layout for "
            "a command)."
        )
    if layouts:
        (layout,) = layouts
        logger.info("%s: read as the layout %r%s; `layout` changes that", name, layout, _about(source, layout))
        return layout
    known = [layout.holds for layout in LAYOUTS.values()] + [holds for holds, _ in TABLES.values() if holds]
    expected = f"expected {', '.join(known[:-1])} or {known[-1]}"
    if path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"{name}: the folder is empty; {expected}.")
    found = unfit_files(source) or [_contents(path)]
    what = "the folder holds" if path.is_dir() else "the file is"
    raise ValueError(f"{name}: {what} none of the known layouts; {expected}. Found instead: {found[0].rstrip('.')}.")


def find_layouts(source: CaptionSource) -> list[str]:
    """The layouts that a folder or file has: one, if it can be told, and none, if it is not known."""
    found = [layout for layout, reader in LAYOUTS.items() if not reader.gives_way and reader.files(source)]
    found += [layout for layout, (_, suffix) in TABLES.items() if suffix and _has_suffix(source.path, suffix)]
    return found or [layout for layout, reader in LAYOUTS.items() if reader.gives_way and reader.files(source)]


def _about(source: CaptionSource, layout: str) -> str:
    """The files that show a layout, in words."""
    if layout not in LAYOUTS:
        return ""
    files = LAYOUTS[layout].files(source)
    names = ", ".join(os.path.relpath(file, source.path) if source.path.is_dir() else file.name for file in files[:3])
    form = f" with {table_form(files[0], source).about()}" if layout == "table" else ""
    return f" ({names}{f' and {len(files) - 3} more' if len(files) > 3 else ''}{form})"


def _contents(path: Path) -> str:
    """What a folder holds, by the endings of its files."""
    if path.is_file():
        return f"a file that ends in {path.suffix!r}" if path.suffix else "a file without ending"
    kinds = Counter("folders" if child.is_dir() else child.suffix.lower() or "no ending" for child in path.iterdir())
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))


def _has_suffix(path: Path, suffix: str) -> bool:
    return path.suffix == suffix if path.is_file() else any(path.rglob(f"*{suffix}"))


def _with_val(loaded: Any, source: CaptionSource) -> Any:
    """`val` taken out of `train`; see `CaptionSource.val_fraction`."""
    check_val_fraction(loaded, source)
    rows = loaded["train"]
    parts: dict[str, Any] = {}
    for split, held_out in {"train": False, "val": True}.items():
        if source.streaming:
            parts[split] = rows.filter(lambda row, wanted=held_out: is_held_out(row["image_id"], source) == wanted)
        else:
            ids = enumerate(rows["image_id"])
            parts[split] = rows.select([number for number, each in ids if is_held_out(each, source) == held_out])
            if not len(parts[split]):
                raise ValueError(
                    f"`val_fraction` ({source.val_fraction}) leaves none of the {len(rows)} images of {source.source} "
                    f"for the split {split!r}; choose another fraction."
                )
    return type(loaded)({**parts, **{split: other for split, other in loaded.items() if split != "train"}})


def check_val_fraction(splits: Any, source: CaptionSource) -> None:
    """
    Raises:
        ValueError: there is no `train`, or there is a `val`.
    """
    if "train" not in splits or "val" in splits:
        raise ValueError(
            f"`val_fraction` ({source.val_fraction}) takes a split 'val' out of 'train', and {source.source} has the "
            f"splits {', '.join(splits)}; leave it out, or choose other `splits`."
        )


def is_held_out(image_id: str, source: CaptionSource) -> bool:
    """Whether an image of `train` is in the part that becomes `val`."""
    digest = blake2b(image_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < (source.val_fraction or 0) * 2**64


def _refuse_unused(source: CaptionSource, layout: str) -> None:
    if layout in LAYOUTS:
        used = LAYOUTS[layout].options
    else:
        used = TABLE_OPTIONS | HUB_OPTIONS if layout == "hub" else TABLE_OPTIONS
    for name in sorted((TABLE_OPTIONS | HUB_OPTIONS) - used):
        if (value := getattr(source, name)) is not None:
            raise ValueError(f"`{name}` ({value}) means nothing in the layout {layout!r}; leave it out.")


def load_splits(data: "DataArguments") -> dict[str, Any]:
    """`train` and, if wanted, `eval`: `Dataset`s, or when streaming an `IterableDataset` and a `Dataset` in memory."""
    loaded = load_languages(data) if data.languages else load_caption_dataset(data)
    splits: dict[str, Any] = {}
    wanted = {"train": (data.train_split, data.max_train_images), "eval": (data.eval_split, data.max_eval_images)}
    for role, (name, limit) in wanted.items():
        if name is None:
            continue
        if name not in loaded:
            hint = (
                "; hold out a part of it with `data.val_fraction: 0.1`" if name == "val" and "train" in loaded else ""
            )
            raise ValueError(
                f"`data.{role}_split` ({name!r}) is not in {data.source}, which has {', '.join(loaded)}{hint}."
            )
        rows = loaded[name] if limit is None else loaded[name].take(limit)
        if data.streaming and role == "eval":
            rows = datasets.Dataset.from_list(list(rows), features=FEATURES)
        if next(iter(rows), None) is None:
            raise ValueError(
                f"{data.source}: the split {name!r} has no image; name another split, or raise its limit."
            )
        splits[role] = rows
    if data.more_train_sources:
        names = source_names(data)
        more = {
            source: _more_train_rows(source, names[source], data) for source in dict.fromkeys(data.more_train_sources)
        }
        check_image_ids([splits["train"], *more.values()])
        # a source that is named twice weighs twice
        parts = [splits["train"], *(more[source] for source in data.more_train_sources)]
        splits["train"] = datasets.concatenate_datasets(parts)
    return splits


def load_languages(data: "DataArguments") -> datasets.DatasetDict:
    """
    The splits of all languages, joined by photo, with the column `languages`: that of each caption of `captions`.

    Photos are the same if their files are, and without files if their ids are. A photo has the id of the first
    language that has it, after the language's name if another photo has that id.

    Raises:
        ValueError: a photo is in one split in one language and in another split in another language; and what
            [`load_caption_dataset`] raises.
    """
    loaded = {
        language: load_caption_dataset(source_of_language(data, where)) for language, where in data.languages.items()
    }
    split_of: dict[str, str] = {}
    parts: dict[str, datasets.Dataset] = {}
    for split in dict.fromkeys(split for splits in loaded.values() for split in splits):
        by_language = {language: splits[split] for language, splits in loaded.items() if split in splits}
        photos: dict[str, dict[str, Any]] = {}
        ids: set[str] = set()
        number = 0
        for language, rows in by_language.items():
            for image_id, path, texts in zip(rows["image_id"], _image_paths(rows), rows["captions"]):
                key = path or image_id
                if split_of.setdefault(key, split) != split:
                    raise ValueError(
                        f"`data.languages` ({language}): the photo {key} is in the split {split!r} here and in "
                        f"{split_of[key]!r} of another language; give it the same split in both."
                    )
                if key not in photos:
                    while image_id in ids:
                        image_id = f"{language}/{image_id}"
                    ids.add(image_id)
                    photos[key] = {"row": number, "image_id": image_id, "captions": [], "languages": []}
                photos[key]["captions"] += texts
                photos[key]["languages"] += [language] * len(texts)
                number += 1
        images = datasets.concatenate_datasets([rows.select_columns(["image"]) for rows in by_language.values()])
        joined = images.select([photo["row"] for photo in photos.values()])
        for name in ("image_id", "captions", "languages"):
            joined = joined.add_column(name, [photo[name] for photo in photos.values()])  # type: ignore[call-arg]
        parts[split] = joined
    return datasets.DatasetDict(parts)


def _image_paths(rows: datasets.Dataset) -> list[str | None]:
    """The file of each image, or None where a table holds its bytes, whose `path` is no more than a name."""
    column = rows.select_columns(["image"]).with_format("arrow")[:]["image"]
    has_bytes = pc.is_valid(pc.struct_field(column, "bytes"))
    return pc.if_else(has_bytes, None, pc.struct_field(column, "path")).to_pylist()


def source_of_language(data: "DataArguments", where: str | dict[str, Any]) -> CaptionSource:
    """The source of a language; a relative path is looked for in the folder `data.source` first."""
    fields = {"source": where} if isinstance(where, str) else dict(where)
    if "source" in fields and data.path.is_dir() and (data.path / fields["source"]).exists():
        fields["source"] = str(data.path / fields["source"])
    return CaptionSource.of(data, **fields)


def rows_of_language(rows: datasets.Dataset, language: str) -> datasets.Dataset:
    """The images that have captions in a language, with these captions alone."""
    captions = [
        [text for text, other in zip(texts, languages) if other == language]
        for texts, languages in zip(rows["captions"], rows["languages"])
    ]
    numbers = [number for number, texts in enumerate(captions) if texts]
    kept = rows.remove_columns(["captions", "languages"]).select(numbers)
    return kept.add_column("captions", [captions[number] for number in numbers])  # type: ignore[call-arg]


def source_names(data: "DataArguments") -> dict[str, str]:
    """Source → what its image ids begin with, of all sources besides the first: the last part of its path, with a
    number behind it (`data`, `data-2`) where it is that of another source, too."""
    names: dict[str, str] = {}
    of_path: dict[str, str] = {}
    for source in (*data.more_train_sources, *(where["source"] for where in data.question_sources)):
        path, name = os.path.abspath(expanded(source)), Path(source).name
        numbered = chain([name], (f"{name}-{number}" for number in count(2)))
        names[source] = of_path.setdefault(path, next(each for each in numbered if each not in of_path.values()))
    return names


def check_image_ids(parts: Sequence[datasets.Dataset]) -> None:
    """
    Raises:
        ValueError: an id is that of one image in one of the parts, and of another image in another part.
    """
    first: dict[str, tuple[datasets.Dataset, int]] = {}
    for part in parts:
        images = part.select_columns(["image"])
        for number, image_id in enumerate(part["image_id"]):
            other, place = first.setdefault(image_id, (images, number))
            if other is images:
                continue
            one, two = other[place]["image"], images[number]["image"]
            if (one["bytes"] or os.path.realpath(one["path"])) != (two["bytes"] or os.path.realpath(two["path"])):
                raise ValueError(
                    f"two images of the sources for training have the id {image_id!r} ({one['path']} and "
                    f"{two['path']}); rename the folder of one of the sources."
                )


def _more_train_rows(source: str, name: str, data: "DataArguments") -> datasets.Dataset:
    """The split `train` of a further source; its image ids get the source's `name` as a prefix, to be unique in the
    run. Its captions are in the first of several languages."""
    loaded = load_caption_dataset(source, cache_dir=data.cache_dir, skip_bad_images=data.skip_bad_images)
    if "train" not in loaded:
        raise ValueError(f"`data.more_train_sources` ({source}) has no split 'train'; there are {', '.join(loaded)}.")
    rows = loaded["train"].map(
        lambda row: {"image_id": f"{name}/{row['image_id']}"}, features=FEATURES, desc=f"naming images of {name}"
    )
    if not data.languages:
        return rows
    language = next(iter(data.languages))
    return rows.add_column("languages", [[language] * len(texts) for texts in rows["captions"]])  # type: ignore[call-arg]


def load_split(data: "DataArguments", split: str, limit: int | None) -> datasets.Dataset:
    """The first `limit` rows of a split; None: all."""
    return load_splits(replace(data, train_split=split, eval_split=None, max_train_images=limit))["train"]


def captions_of(rows: datasets.Dataset | datasets.IterableDataset) -> Iterator[str]:
    """All captions of the images."""
    return chain.from_iterable(rows["captions"])

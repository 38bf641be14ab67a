"""START HERE for data: one loader for every layout, with the columns `image`, `captions`, `image_id` and named splits."""

import re
from collections.abc import Mapping
from pathlib import Path

import datasets

from fusion_captioner.data import coco_layout, imagefolder_layout, karpathy_layout
from fusion_captioner.data.annotated_images import SkippedExample
from fusion_captioner.data.caption_folder import READERS, load_caption_folder
from fusion_captioner.data.caption_tables import load_caption_tables

TABLES = ("hub", "parquet", "webdataset")
LAYOUTS = (*READERS, *TABLES)
# `namespace/name` or `name`, as the Hub spells repositories.
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_caption_dataset(
    source: str | Path,
    *,
    layout: str = "auto",
    splits: Mapping[str, str] | None = None,
    images_folder: str | Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    id_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    skip_bad_images: bool = False,
    allow_urls: bool = False,
    skipped: list[SkippedExample] | None = None,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Images and their captions, from wherever they are.

    | layout | `source` |
    |---|---|
    | `"coco"` | a folder with `annotations/captions_<split>.json` and a folder of images for each split |
    | `"karpathy"` | a folder with `dataset_{coco,flickr8k,flickr30k}.json`, or that file; images in `images/` beside it, in `train2014/` and `val2014/` for COCO |
    | `"imagefolder"` | a folder with `<split>/metadata.jsonl` (`file_name`, and `text`, `caption` or `captions`) |
    | `"parquet"`, `"webdataset"` | a folder with shards, or one shard |
    | `"hub"` | the name of a Hub repository without script |

    Splits get the names `train`, `val` and `test` whatever the source calls them (`train2017`, `validation`, `dev`);
    other names stay. Karpathy's `restval` is part of `train` unless `splits` says otherwise.

    Images stay undecoded; annotations, the presence of every image and its header are checked once. The result is kept
    as Arrow files by `datasets`: the next call with unchanged annotation files reads neither annotations nor images.
    (It follows that an image deleted since then is missed by whoever decodes it, the collator.)

    Args:
        source: path or name, see above.
        layout: one of the table, or `"auto"`: by what the folder holds; what is no folder is a Hub repository.
        splits: split wanted → the source's split, or several joined by `+` (`{"train": "train+restval"}`); only
            these are loaded. None: all.
        images_folder: where the images are, if not in the place above. For tables, the folder of the files that a
            column of text names.
        image_column: tables only: column of images; by default the only one.
        caption_column: tables and imagefolder: column of captions, a text or a list each; a dotted path for one
            inside a column (`json.caption`); by default `captions`, `caption`, `text`, `txt` or `sentences`.
        id_column: tables and imagefolder: id of the image; rows with the same id are joined (but not in a stream of
            a table). By default `image_id` or a WebDataset's `__key__`; else the image's path or a digest of it.
        config_name: Hub only: the repository's configuration.
        revision: Hub only: branch, tag or commit.
        streaming: give `IterableDataset`s that read an image's header, and a table's row, when its turn comes.
        cache_dir: where `datasets` keeps the Arrow files; by default its own place.
        skip_bad_images: leave bad examples out (logged, counted, listed) instead of raising at the first.
        allow_urls: tables only: fetch images that rows name by http(s) URLs of public servers.
        skipped: a list that is extended by what was left out (when streaming, that is logged only).

    Returns:
        Splits with the columns `image` (`datasets.Image(decode=False)`: `path` or `bytes`), `captions` (list of str,
        white space made single blanks) and `image_id` (str, unique in its split).

    Raises:
        FileNotFoundError: a folder, annotation file or image is not there.
        ValueError: malformed annotations, an annotation without image, an image without caption, an empty caption, an
            unreadable image, a `file_name` that leaves the image folder, or an argument that does not fit. The message
            is one line that names the file and the fix.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"`layout` ({layout!r}) must be 'auto' or one of {', '.join(map(repr, LAYOUTS))}.")
    path = Path(source).expanduser()
    if layout == "auto":
        layout = detect_layout(path, str(source))
    folder = None if images_folder is None else Path(images_folder).expanduser().absolute()
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"`images_folder` ({images_folder}) is no folder.")
    cache = None if cache_dir is None else str(Path(cache_dir).expanduser())
    _refuse_unused(
        layout, images_folder=images_folder, image_column=image_column, caption_column=caption_column,
        id_column=id_column, config_name=config_name, revision=revision,
    )  # fmt: skip
    if layout != "hub" and not path.exists():
        raise FileNotFoundError(f"{source}: no such file or folder.")

    if layout in READERS:
        root, files = _annotation_files(layout, path.absolute())
        result, left_out = load_caption_folder(
            layout,
            root,
            files,
            images_folder=folder,
            splits=splits,
            caption_column=caption_column,
            id_column=id_column,
            streaming=streaming,
            cache_dir=cache,
            skip_bad_images=skip_bad_images,
        )
    else:
        result, left_out = load_caption_tables(
            str(source) if layout == "hub" else str(path.absolute()),
            layout,
            image_column=image_column,
            caption_column=caption_column,
            id_column=id_column,
            images_folder=folder,
            splits=splits,
            config_name=config_name,
            revision=revision,
            streaming=streaming,
            cache_dir=cache,
            skip_bad_images=skip_bad_images,
            allow_urls=allow_urls,
        )
    if skipped is not None:
        skipped += left_out
    return result


def detect_layout(path: Path, source: str) -> str:
    """The layout of a folder or file by what is there; of what is neither, `"hub"`.

    Raises:
        FileNotFoundError: neither a folder or file nor a possible name of a Hub repository.
        ValueError: the folder holds nothing known, or more than one layout.
    """
    if path.is_file():
        for layout, fits in {
            "karpathy": path.name.startswith("dataset_") and path.suffix == ".json",
            "parquet": path.suffix == ".parquet",
            "webdataset": path.suffix == ".tar",
        }.items():
            if fits:
                return layout
        raise ValueError(
            f"{source}: not a dataset_*.json, *.parquet or *.tar; give the folder of the data, or `layout`."
        )
    if not path.is_dir():
        if HUB_NAME.fullmatch(source) and not source.startswith("."):
            return "hub"
        raise FileNotFoundError(f"{source}: no such file or folder, and no name of a Hub repository.")
    found = {
        "coco": bool(coco_layout.annotation_files(path)),
        "karpathy": bool(karpathy_layout.annotation_files(path)),
        "imagefolder": bool(imagefolder_layout.annotation_files(path)),
        "parquet": any(path.rglob("*.parquet")),
        "webdataset": any(path.rglob("*.tar")),
    }
    layouts = [layout for layout, is_there in found.items() if is_there]
    if not layouts:
        state = "is empty" if not any(path.iterdir()) else "holds none of the known layouts"
        raise ValueError(
            f"{source}: the folder {state}; expected annotations/captions_*.json (COCO), dataset_*.json (Karpathy), "
            "metadata.jsonl (imagefolder), *.parquet or *.tar (WebDataset)."
        )
    if len(layouts) > 1:
        raise ValueError(
            f"{source}: the folder holds more than one layout; give `layout`, one of {', '.join(layouts)}."
        )
    return layouts[0]


def _annotation_files(layout: str, path: Path) -> tuple[Path, list[Path]]:
    """The folder of the data and the annotation files to read."""
    if layout == "karpathy":
        files = [path] if path.is_file() else karpathy_layout.annotation_files(path)
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise ValueError(f"{path}: more than one of Karpathy's files ({names}); give the path of one of them.")
        root, expected = (path.parent if path.is_file() else path), "dataset_*.json"
    elif layout == "coco":
        root, files, expected = path, list(coco_layout.annotation_files(path).values()), "annotations/captions_*.json"
    else:
        root, files = path, list(imagefolder_layout.annotation_files(path).values())
        expected = "metadata.jsonl, neither in it nor in its sub-folders"
    if not files:
        raise FileNotFoundError(f"{path}: no {expected}, which the layout {layout!r} needs.")
    return root, files


def _refuse_unused(layout: str, **arguments: object) -> None:
    used = {
        "coco": {"images_folder"},
        "karpathy": {"images_folder"},
        "imagefolder": {"caption_column", "id_column"},
        "hub": {"images_folder", "image_column", "caption_column", "id_column", "config_name", "revision"},
    }.get(layout, {"images_folder", "image_column", "caption_column", "id_column"})
    for name, value in arguments.items():
        if value is not None and name not in used:
            raise ValueError(f"`{name}` ({value}) means nothing in the layout {layout!r}; leave it out.")

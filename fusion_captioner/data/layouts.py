"""Layouts of folders of images with captions: a layout is one function, here or in `row_layouts.py`, and its entry in
`LAYOUTS`.

A function reads the annotations of the splits that are wanted; it opens no image. Its docstring shows the layout. It
reports to `bad` annotations without image, images without caption, ids that name two files, and names of files that
leave the folder of the images. It raises a FileNotFoundError where a file or folder is missing, and a ValueError for
malformed annotations; each message is one line with the file and the fix.
"""

import os
import re
import reprlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fusion_captioner.data.annotated_images import (
    AnnotatedImage,
    BadExamples,
    SkippedExample,
    clean_captions,
    merge_repeated,
)
from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.data.image_files import ImageFolder
from fusion_captioner.data.names import choose_splits, split_in_name
from fusion_captioner.data.row_files import read_beginning, read_json
from fusion_captioner.data.row_layouts import (
    imagefolder_splits,
    json_files,
    read_imagefolder,
    read_json_list,
    read_sidecars,
    read_table,
    sidecar_files,
    table_files,
)

COCO_PREFIX = "captions_"
# How a file begins that is COCO's: an object with a list of images or annotations, which may be empty
COCO_BEGINNING = re.compile(
    r'\s*\{.*?"(?:images|annotations)"\s*:\s*\[\s*(?:\]|\{[^{}]*"(?:file_name|image_id)"\s*:)', re.DOTALL
)
KARPATHY_PREFIX = "dataset_"
KARPATHY_KEYS = ("filename", "split", "sentences")
ROW_OPTIONS = {"images_folder", "image_column", "caption_column", "id_column"}

Splits = dict[str, list[AnnotatedImage]]


class Layout(NamedTuple):
    """
    Args:
        files: the annotation files of a folder, or a file by itself, that show the layout; empty: it is another.
        read: split → its images, of a source.
        holds: what such a folder holds, for messages.
        options: fields of `CaptionSource` that this layout has a use for.
        gives_way: whether it is another layout where files of that are there, too.
    """

    files: Callable[[CaptionSource], list[Path]]
    read: Callable[[CaptionSource, BadExamples], Splits]
    holds: str
    options: set[str]
    gives_way: bool = False


def read_coco(source: CaptionSource, bad: BadExamples) -> Splits:
    """COCO's own layout: a file of captions and a folder of images for each split.

        annotations/captions_train2017.json    {"images": [{"id", "file_name"}],
                                                "annotations": [{"image_id", "caption"}]}
        annotations/captions_val2017.json
        train2017/000000000009.jpg ...
        val2017/...

    Other files in `annotations/` (instances, keypoints, image_info) are no captions and are left alone. Images are in
    the order of the `images` lists. The path of one file gives its split alone; the file need not lie in
    `annotations/`, and its images may then lie next to it.
    """
    files = {_coco_split(path): path for path in ([source.path] if source.path.is_file() else coco_files(source))}
    splits = {}
    for split, names in choose_splits(list(files), source.splits).items():
        images: list[AnnotatedImage] = []
        for name in names:
            folder = ImageFolder(_coco_images(source, name))
            images += _read_coco_file(files[name], folder, split, bad)
        splits[split] = merge_repeated(images, split, bad)
    return splits


def coco_files(source: CaptionSource) -> list[Path]:
    path = source.path
    if not path.is_file():
        return sorted(path.glob(f"annotations/{COCO_PREFIX}*.json"))
    if path.suffix != ".json" or path.name.startswith(KARPATHY_PREFIX):
        return []
    with suppress(ValueError, OSError):
        return [path] if COCO_BEGINNING.match(read_beginning(path)) else []
    return []


def _coco_split(path: Path) -> str:
    if path.stem.startswith(COCO_PREFIX):
        return path.stem.removeprefix(COCO_PREFIX)
    return split_in_name(path.name) or "train"


def _coco_images(source: CaptionSource, name: str) -> Path:
    root = source.path
    if source.images_path is not None:
        candidates = [source.images_path / name, source.images_path]
    else:
        is_file = root.is_file()
        if is_file:
            root = root.parent.parent if root.parent.name == "annotations" else root.parent
        candidates = [root / name, root / "images" / name, root / "images", *([root] if is_file else [])]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"{root}: no folder with the images of COCO split {name!r} (looked for {', '.join(map(str, candidates))}); "
        f"put it "
        'there, name it with `images_folder`, or choose the splits to load with `splits`, e.g. {"val": "val2017"}.'
    )


def _read_coco_file(path: Path, folder: ImageFolder, split: str, bad: BadExamples) -> list[AnnotatedImage]:
    document = read_json(path)
    file_names: dict[str, str] = {}
    captions: dict[str, list[object]] = {}
    for number, entry in enumerate(_required_list(document, "images", path)):
        try:
            image_id, file_name = str(entry["id"]), entry["file_name"]
        except (TypeError, KeyError):
            raise _incomplete(entry, f"images[{number}]", ("id", "file_name"), path) from None
        if file_names.setdefault(image_id, file_name) != file_name:
            reason = f"image id {image_id} already names {file_names[image_id]!r}"
            bad.report(SkippedExample(split, image_id, str(file_name), reason))
        captions.setdefault(image_id, [])
    for number, entry in enumerate(_required_list(document, "annotations", path)):
        try:
            image_id, caption = str(entry["image_id"]), entry["caption"]
        except (TypeError, KeyError):
            raise _incomplete(entry, f"annotations[{number}]", ("image_id", "caption"), path) from None
        if image_id in captions:
            captions[image_id].append(caption)
        else:
            reason = f'annotation without image: "images" has no id {image_id} (caption {caption!r})'
            bad.report(SkippedExample(split, image_id, str(path), reason))

    images = []
    for image_id, file_name in file_names.items():
        try:
            image_path = folder.resolve(file_name)
        except ValueError as error:
            bad.report(SkippedExample(split, image_id, str(path), str(error)))
            continue
        if texts := clean_captions(captions[image_id], split, image_id, image_path, bad):
            images.append(AnnotatedImage(image_id, image_path, texts))
    return images


def read_karpathy(source: CaptionSource, bad: BadExamples) -> Splits:
    """Karpathy's layout: one file that names the split of every image.

        dataset_flickr8k.json    {"images": [{"filename", "split", "imgid", "sentences": [{"raw"}]}]}
        images/*.jpg             or, for COCO, train2014/*.jpg and val2014/*.jpg, named by "filepath"

    The id of an image is its `cocoid`, else its `imgid`, else its file name. Images are in the order of the file.

    Source: Karpathy & Fei-Fei (2015), Deep Visual-Semantic Alignments for Generating Image Descriptions. Its
    `restval` are the images of COCO's val2014 that are in neither `val` nor `test`; everyone since trains on them too.
    """
    files = [source.path] if source.path.is_file() else karpathy_files(source)
    if len(files) > 1:
        found = ", ".join(file.name for file in files)
        raise ValueError(f"{source.path}: more than one of Karpathy's files ({found}); give the path of one of them.")
    (path,) = files
    entries = _karpathy_entries(path)
    root = path.parent
    folder = ImageFolder(source.images_path or (root / "images" if (root / "images").is_dir() else root))
    available = list(dict.fromkeys(entry["split"] for entry in entries))
    chosen = choose_splits(available, source.splits, joins_train="restval")
    splits = {}
    for split, names in chosen.items():
        wanted = [(number, entry) for number, entry in enumerate(entries) if entry["split"] in names]
        images = [_karpathy_image(entry, number, path, folder, split, bad) for number, entry in wanted]
        splits[split] = merge_repeated([image for image in images if image is not None], split, bad)
    return splits


def karpathy_files(source: CaptionSource) -> list[Path]:
    """
    The `dataset_*.json` in the folder; there should be one. Captions of the same images in further languages,
    `dataset_flickr8k_zh.json` next to `dataset_flickr8k.json`, are read only where their path is given.
    """
    path = source.path
    if path.is_file():
        return [path] if path.name.startswith(KARPATHY_PREFIX) and path.suffix == ".json" else []
    files = sorted(path.glob(f"{KARPATHY_PREFIX}*.json"), key=lambda file: (len(file.stem), file.stem))
    return [file for file in files if not any(file.stem.startswith(f"{first.stem}_") for first in files)]


def _karpathy_entries(path: Path) -> list[dict[str, Any]]:
    entries = _required_list(read_json(path), "images", path)
    if not entries:
        raise ValueError(f'{path}: has no images; "images" is an empty list.')
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not all(key in entry for key in KARPATHY_KEYS):
            raise _incomplete(entry, f"images[{number}]", KARPATHY_KEYS, path)
        split = entry["split"]
        if not isinstance(split, str) or not split.strip():
            shown = reprlib.aRepr.repr1(split, 1)
            raise ValueError(f'{path}: images[{number}]["split"] ({shown}) is no text that names a split.')
    return entries


def _karpathy_image(
    entry: dict[str, Any], number: int, path: Path, folder: ImageFolder, split: str, bad: BadExamples
) -> AnnotatedImage | None:
    image_id = str(entry.get("cocoid", entry.get("imgid", entry["filename"])))
    try:
        # COCO's `filepath` ("val2014") is a sub-folder, unless all images lie in one folder.
        sub_folder = entry.get("filepath", "")
        image_path = folder.resolve(entry["filename"])
        if sub_folder and os.path.isdir(folder.path / str(sub_folder)):  # Path's raises where the name is too long
            image_path = folder.resolve(f"{sub_folder}/{entry['filename']}")
    except ValueError as error:
        bad.report(SkippedExample(split, image_id, str(path), str(error)))
        return None
    sentences = entry["sentences"]
    if not isinstance(sentences, list) or not all(isinstance(item, dict) and "raw" in item for item in sentences):
        raise ValueError(f'{path}: images[{number}]["sentences"] is no list of {{"raw": caption}} objects.')
    captions = clean_captions((item["raw"] for item in sentences), split, image_id, image_path, bad)
    return AnnotatedImage(image_id, image_path, captions) if captions else None


def _incomplete(entry: Any, place: str, keys: tuple[str, ...], path: Path) -> ValueError:
    """What is wrong with an entry of a list that is no object, or lacks one of the `keys`."""
    quoted = [f'"{key}"' for key in keys]
    needs = f"it needs {', '.join(quoted)}."
    if not isinstance(entry, dict):
        return ValueError(f"{path}: {place} ({reprlib.aRepr.repr1(entry, 1)}) is no object; {needs}")
    return ValueError(f"{path}: {place} has no {next(key for key in quoted if key[1:-1] not in entry)}; {needs}")


def _required_list(document: Any, key: str, path: Path) -> list[Any]:
    if not isinstance(document, dict) or not isinstance(document.get(key), list):
        raise ValueError(f"{path}: expected a JSON object with a list \"{key}\", as in COCO's or Karpathy's files.")
    return document[key]


LAYOUTS = {
    "coco": Layout(coco_files, read_coco, "annotations/captions_*.json (COCO)", {"images_folder"}),
    "karpathy": Layout(karpathy_files, read_karpathy, "dataset_*.json (Karpathy)", {"images_folder"}),
    "imagefolder": Layout(
        lambda source: list(imagefolder_splits(source.path).values()),
        read_imagefolder,
        "metadata.jsonl or metadata.csv (imagefolder)",
        {"caption_column", "id_column"},
    ),
    "table": Layout(
        table_files, read_table, "*.csv, *.tsv or *.txt with the columns image,caption (table)", ROW_OPTIONS, True
    ),
    "json": Layout(
        json_files, read_json_list, '*.json or *.jsonl of {"image": ..., "caption": ...} (json)', ROW_OPTIONS, True
    ),
    "sidecar": Layout(
        sidecar_files, read_sidecars, "photo.txt or photo.caption next to each photo (sidecar)", set(), True
    ),
}

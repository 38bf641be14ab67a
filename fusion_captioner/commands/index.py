"""`fusion-captioner index`: embeds what is new in a folder or data set, and makes it searchable."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from tqdm.auto import tqdm

from fusion_captioner.checkpoints.loading import check_captioner
from fusion_captioner.data.image_files import open_image
from fusion_captioner.data.image_hashes import ImageHashes
from fusion_captioner.inference.retriever import Retriever
from fusion_captioner.search.embedding_shards import EmbeddingShards
from fusion_captioner.search.image_index import (
    MANIFEST,
    NAMES,
    ImageIndex,
    Manifest,
    check_index_folder,
    require_faiss,
    updating,
)
from fusion_captioner.search.indexed_images import IndexedImages, index_rows, load_images

READERS = 2


def index(options: argparse.Namespace) -> int:
    """Run the command; returns 0, or 1 if some of the images could not be indexed."""
    if options.batch_size < 1:
        raise ValueError(f"--batch-size ({options.batch_size}) must be at least 1.")
    require_faiss()
    check_captioner(options.model)
    folder = Path(options.out).expanduser()
    check_index_folder(folder)
    if (folder / MANIFEST).is_file():
        _check_source(ImageIndex(folder), options)
    images = load_images(options.source, options.layout, options.split)
    retriever = Retriever(options.model, options.revision)
    with updating(folder, _manifest(options, retriever)) as image_index:
        check_checkpoint(image_index, retriever)
        return _update(image_index, images, retriever, options)


def check_checkpoint(image_index: ImageIndex, retriever: Retriever) -> None:
    """
    Raises:
        ValueError: another checkpoint made the index.
    """
    manifest = image_index.manifest
    if manifest.fingerprint != retriever.fingerprint:
        raise ValueError(
            f"{image_index.folder}: was built by another checkpoint, {manifest.model} ({manifest.fingerprint}), than "
            f"{retriever.name} ({retriever.fingerprint}); give that one as --model, or index into another folder."
        )


def _check_source(image_index: ImageIndex, options: argparse.Namespace) -> None:
    manifest = image_index.manifest
    was, now = (
        f"{source} (split {split})" if split else source
        for source, split in ((manifest.source, manifest.split), (_absolute(options.source), options.split))
    )
    if was != now:
        raise ValueError(f"--out ({options.out}): is an index of {was}, not of {now}; name another folder.")


def _manifest(options: argparse.Namespace, retriever: Retriever) -> Manifest:
    return Manifest(
        model=_absolute(options.model),
        revision=options.revision,
        fingerprint=retriever.fingerprint,
        preprocessing=retriever.preprocessing,
        embedding_width=retriever.width,
        source=_absolute(options.source),
        layout=options.layout,
        split=options.split,
    )


def _absolute(name: str) -> str:
    """The name of a folder or file that holds anywhere; names on the Hub stay."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.exists(path) else name


def _update(image_index: ImageIndex, images: IndexedImages, retriever: Retriever, options: argparse.Namespace) -> int:
    keys = _hash_images(image_index, images)
    shards = {kind: image_index.shards(kind) for kind in NAMES}
    problems = list(images.problems)
    before = {kind: len(shards[kind]) for kind in shards}
    _embed_images(images, keys, shards["images"], retriever, options.batch_size, problems)
    for line in problems:
        print(f"fusion-captioner: {line}", file=sys.stderr)
    total = len(images) + len(images.problems)
    if len(problems) == total:
        raise ValueError(f"{options.source}: none of its {total} images can be read, and the index stays as it was.")

    of_images, of_texts = index_rows(images, keys)
    _embed_texts(of_texts, shards["texts"], retriever, options.batch_size)
    known = _known_rows(image_index)
    rows = {"images": _in_order(of_images, known["images"]), "texts": _in_order(of_texts, known["texts"])}
    image_index.put_in_force(rows, shards)
    if problems:
        print(f"fusion-captioner: {len(problems)} of {total} images could not be indexed", file=sys.stderr)
    result = {
        "index": options.out,
        "images": len(rows["images"]),
        "texts": len(rows["texts"]),
        "embedded_images": len(shards["images"]) - before["images"],
        "embedded_texts": len(shards["texts"]) - before["texts"],
        "removed_images": len(known["images"].keys() - of_images.keys()),
        "bad_images": len(problems),
    }
    print(json.dumps(result, ensure_ascii=False))
    return 1 if problems else 0


def _hash_images(image_index: ImageIndex, images: IndexedImages) -> dict[str, list[str | None]]:
    """Split → hash of the content of each image, None where it cannot be read."""
    try:
        hashes = ImageHashes(image_index.hashes_file)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{image_index.hashes_file}: is damaged ({error}); delete it, it is made again.") from error
    return {split: hashes.of_rows(rows, split or "the folder") for split, rows in images.splits.items()}


def _embed_images(
    images: IndexedImages,
    keys: dict[str, list[str | None]],
    shards: EmbeddingShards,
    retriever: Retriever,
    batch_size: int,
    problems: list[str],
) -> None:
    """Embed what is not in the shards; what cannot be decoded gets the key None, and a line in `problems`."""
    rows = {split: table.select_columns(["image", "image_id"]) for split, table in images.splits.items()}

    def read(place: tuple[str, int]) -> Image.Image | str:
        split, row = place
        example = rows[split][row]
        try:
            return open_image(example["image"], example["image_id"], retriever.image_processor)
        except (ValueError, OSError) as error:
            return " ".join(str(error).split())

    # one place for each content; a file without hash is looked at again, for what is wrong with it
    wanted: dict[str | tuple[str, int], tuple[str, int]] = {}
    for split, hashes in keys.items():
        for row, key in enumerate(hashes):
            if key is None or key not in shards:
                wanted.setdefault(key or (split, row), (split, row))
    bad: dict[str, str] = {}
    with ThreadPoolExecutor(READERS) as readers:
        for places in _batches(list(wanted.values()), batch_size, "embedding images"):
            pictures: dict[str, Image.Image] = {}
            for (split, row), picture in zip(places, readers.map(read, places)):
                key = keys[split][row]
                if isinstance(picture, str) and key is not None:
                    bad[key] = picture
                elif isinstance(picture, str):
                    problems.append(picture)
                elif key is None:
                    problems.append(f"{rows[split][row]['image']['path']}: changed meanwhile; index again")
                else:
                    pictures[key] = picture
            if pictures:
                shards.add(list(pictures), retriever.embed_images(list(pictures.values())))
    shards.flush()
    for split, hashes in keys.items():
        for row, key in enumerate(hashes):
            if key in bad:
                path = rows[split][row]["image"]["path"]
                # another file of the same content has the same fault
                problems.append(bad[key] if path is None or path in bad[key] else f"{path}: {bad[key]}")
                hashes[row] = None


def _embed_texts(
    texts: dict[str, dict[str, Any]], shards: EmbeddingShards, retriever: Retriever, batch_size: int
) -> None:
    wanted = [text for text, row in texts.items() if row["key"] not in shards]
    # texts of like length together, so that little is padded
    wanted.sort(key=len)
    for batch in _batches(wanted, 8 * batch_size, "embedding texts"):
        shards.add([texts[text]["key"] for text in batch], retriever.embed_texts(batch, truncation=True))
    shards.flush()


def _known_rows(image_index: ImageIndex) -> dict[str, dict[str, str]]:
    """Kind → name of each row that is in force, in order, and its key; nothing where that is damaged."""
    known: dict[str, dict[str, str]] = {}
    for kind, name in NAMES.items():
        try:
            rows = image_index.rows(kind)
            known[kind] = dict(zip(rows[name][:], rows["key"][:], strict=True))
        except (ValueError, OSError):
            known[kind] = {}
    return known


def _in_order(rows: dict[str, dict[str, Any]], known: dict[str, str]) -> list[dict[str, Any]]:
    """Those that were there before come first, so that the FAISS index of them is extended."""
    kept = [name for name, key in known.items() if name in rows and rows[name]["key"] == key]
    first = set(kept)
    return [rows[name] for name in (*kept, *(name for name in rows if name not in first))]


def _batches(items: list[Any], size: int, label: str) -> Iterator[list[Any]]:
    with tqdm(total=len(items), desc=label, disable=None, leave=False) as progress:
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            yield batch
            progress.update(len(batch))

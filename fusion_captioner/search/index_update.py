"""An index brought up to date: what is new is embedded, and what is gone is dropped."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from fusion_captioner.data.image_files import open_image
from fusion_captioner.data.image_hashes import ImageHashes
from fusion_captioner.inference.retriever import Retriever
from fusion_captioner.prefetching import prefetch
from fusion_captioner.search.embedding_shards import EmbeddingShards
from fusion_captioner.search.image_index import NAMES, ImageIndex
from fusion_captioner.search.indexed_images import IndexedImages, index_rows

READERS = 2


def update_index(
    image_index: ImageIndex,
    images: IndexedImages,
    retriever: Retriever,
    batch_size: int,
    report_problem: Callable[[str], None],
) -> dict[str, int]:
    """
    Embed what is new, and commit the rows of all images and texts.

    Args:
        image_index: the index, which no other process updates; see `updating`.
        images: all images that the index is to hold.
        retriever: of the checkpoint that the index is made by.
        batch_size: images per batch.
        report_problem: called with a line for each image that cannot be read, and with their number.

    Returns:
        numbers of `images`, `texts`, `embedded_images`, `embedded_texts`, `removed_images` and `bad_images`.

    Raises:
        ValueError: none of the images can be read; the index stays as it was.
    """
    keys = _hash_images(image_index, images)
    shards = {kind: image_index.shards(kind) for kind in NAMES}
    problems = list(images.problems)
    before = {kind: len(shards[kind]) for kind in shards}
    _embed_images(images, keys, shards["images"], retriever, batch_size, problems)
    for line in problems:
        report_problem(line)
    total = len(images) + len(images.problems)
    if len(problems) == total:
        source = image_index.manifest.source
        raise ValueError(f"{source}: none of its {total} images can be read, and the index stays as it was.")

    of_images, of_texts = index_rows(images, keys)
    _embed_texts(of_texts, shards["texts"], retriever, batch_size)
    known = _known_rows(image_index)
    rows = {"images": _in_order(of_images, known["images"]), "texts": _in_order(of_texts, known["texts"])}
    image_index.commit(rows, shards)
    if problems:
        report_problem(f"{len(problems)} of {total} images could not be indexed")
    return {
        "images": len(rows["images"]),
        "texts": len(rows["texts"]),
        "embedded_images": len(shards["images"]) - before["images"],
        "embedded_texts": len(shards["texts"]) - before["texts"],
        "removed_images": len(known["images"].keys() - of_images.keys()),
        "bad_images": len(problems),
    }


def _hash_images(image_index: ImageIndex, images: IndexedImages) -> dict[str, list[str | None]]:
    """Split → hash of the content of each image, None where it cannot be read."""
    hashes = ImageHashes(image_index.hashes_file)
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
            return str(error)

    # one place for each content; a file without hash is looked at again, for what is wrong with it
    wanted: dict[str | tuple[str, int], tuple[str, int]] = {}
    for split, hashes in keys.items():
        for row, key in enumerate(hashes):
            if key is None or key not in shards:
                wanted.setdefault(key or (split, row), (split, row))
    bad: dict[str, str] = {}
    pictures = prefetch(wanted.values(), read, batch_size, READERS)
    for batch in _batches(pictures, len(wanted), batch_size, "embedding images"):
        readable: dict[str, Image.Image] = {}
        for (split, row), picture in batch:
            key = keys[split][row]
            if isinstance(picture, str) and key is not None:
                bad[key] = picture
            elif isinstance(picture, str):
                problems.append(picture)
            elif key is None:
                problems.append(f"{rows[split][row]['image']['path']}: changed meanwhile; index again")
            else:
                readable[key] = picture
        if readable:
            shards.add(list(readable), retriever.embed_images(list(readable.values())))
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
    # texts of similar length together, so that little is padded
    wanted.sort(key=len)
    for batch in _batches(iter(wanted), len(wanted), 8 * batch_size, "embedding texts"):
        shards.add([texts[text]["key"] for text in batch], retriever.embed_texts(batch, truncation=True))
    shards.flush()


def _known_rows(image_index: ImageIndex) -> dict[str, dict[str, str]]:
    """Kind → name of each committed row, in order, and its key; nothing where the rows are damaged."""
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


def _batches(items: Iterator[Any], total: int, size: int, label: str) -> Iterator[list[Any]]:
    with tqdm(total=total, desc=label, disable=None, leave=False) as progress:
        while batch := list(islice(items, size)):
            yield batch
            progress.update(len(batch))

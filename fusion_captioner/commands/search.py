"""`fusion-captioner search`: the images or texts of an index that are closest to a text or an image, as JSON lines."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusion_captioner.commands.index import check_checkpoint
from fusion_captioner.data.image_files import open_image
from fusion_captioner.image_loading import load_image
from fusion_captioner.inference.retriever import Retriever
from fusion_captioner.search.embedding_shards import EMBEDDING
from fusion_captioner.search.image_index import ImageIndex, require_faiss
from fusion_captioner.search.indexed_images import load_images, read_indexed_image


def search(options: argparse.Namespace) -> int:
    """Run the command; returns 0, or 1 if an image could not be read for re-ranking."""
    _check(options)
    require_faiss()
    image_index = ImageIndex(Path(options.index).expanduser())
    rows = image_index.searchable(options.find)
    manifest = image_index.manifest
    retriever = Retriever(options.model or manifest.model, options.revision or manifest.revision)
    check_checkpoint(image_index, retriever)
    if options.rerank and not retriever.can_match:
        raise ValueError(
            f"--rerank ({options.rerank}): {retriever.name} has no score of fused pairs (`matching_loss_weight` is 0); "
            "leave --rerank out, or index with a checkpoint that was trained with a matching loss."
        )
    picture: Image.Image | None = None
    if options.image is None:
        (query,) = retriever.embed_texts([options.text])
    else:
        picture = _query_image(options.image, retriever)
        (query,) = retriever.embed_images([picture])

    found = rows.get_nearest_examples(EMBEDDING, query, k=min(max(options.top, options.rerank), len(rows)))
    results = [
        {name: values[place] for name, values in found.examples.items()} | {"score": round(float(score), 4)}
        for place, score in enumerate(found.scores)
    ]
    problems: list[str] = []
    if options.rerank:
        candidates, others = results[: options.rerank], results[options.rerank :]
        if picture is None:
            candidates = _rerank_images(candidates, options.text, image_index, retriever, problems)
        else:
            _score(candidates, retriever.match([row["text"] for row in candidates], [picture])[:, 0])
            candidates = _best_first(candidates, retriever)
        results = candidates + others
    for row in results[: options.top]:
        print(json.dumps(_shown(row), ensure_ascii=False), flush=True)
    for line in problems:
        print(f"fusion-captioner: {line}", file=sys.stderr)
    return 1 if problems else 0


def _check(options: argparse.Namespace) -> None:
    if (options.text is None) == (options.image is None):
        raise ValueError("give either a text to search by, or --image FILE.")
    if options.text is not None and not options.text.strip():
        raise ValueError(f"the text to search by ({options.text!r}) is empty; say what to find.")
    if options.image == "":
        raise ValueError("--image ('') is empty; name a file or a URL.")
    if options.top < 1:
        raise ValueError(f"--top ({options.top}) must be at least 1.")
    if options.rerank < 0:
        raise ValueError(f"--rerank ({options.rerank}) must be a number of candidates, or 0 for none.")
    if options.rerank and (options.image is None) == (options.find == "texts"):
        kind = "texts with a text" if options.find == "texts" else "images with an image"
        raise ValueError(f"--rerank ({options.rerank}) scores a text with an image, not {kind}; leave it out.")


def _query_image(image: str, retriever: Retriever) -> Image.Image:
    if image.startswith(("http://", "https://")):
        return load_image(image)
    # as indexed images are read, so that an image is found to be the same as itself
    return open_image({"path": image, "bytes": None}, image, retriever.image_processor)


def _rerank_images(
    candidates: list[dict[str, Any]],
    text: str,
    image_index: ImageIndex,
    retriever: Retriever,
    problems: list[str],
) -> list[dict[str, Any]]:
    """Best first; those that cannot be read any more come last."""
    manifest = image_index.manifest
    images = None
    if any(row["split"] is not None for row in candidates):
        images = load_images(manifest.source, manifest.layout, manifest.split)
    readable, pictures, unreadable = [], [], []
    for row in candidates:
        try:
            pictures.append(read_indexed_image(row, images, retriever.image_processor))
            readable.append(row)
        except (ValueError, OSError) as error:
            problems.append(" ".join(str(error).split()))
            unreadable.append(row)
    if readable:
        _score(readable, retriever.match([text], pictures)[0])
        readable = _best_first(readable, retriever)
    return readable + unreadable


def _best_first(rows: list[dict[str, Any]], retriever: Retriever) -> list[dict[str, Any]]:
    """By the sum of both logits: the matching score has learned what the towers, which drew its negatives, do not see."""
    return sorted(rows, key=lambda row: -(retriever.inverse_temperature * row["score"] + row["matching"]))


def _score(rows: list[dict[str, Any]], logits: np.ndarray) -> None:
    """Give each row its `matching`, a logit: above 0 where text and image rather match than not."""
    for row, logit in zip(rows, logits.tolist(), strict=True):
        row["matching"] = round(logit, 4)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    names = ("image", "text", "score", "matching", "captions", "images")
    return {name: row[name] for name in names if name in row and row[name] != []}

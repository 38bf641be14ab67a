"""What of an index is closest to a query: by the towers, and re-ranked by the score of fused pairs."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image

from fusion_captioner.data.image_files import open_image
from fusion_captioner.image_loading import is_url, load_image
from fusion_captioner.inference.retriever import Retriever
from fusion_captioner.search.embedding_shards import EMBEDDING
from fusion_captioner.search.image_index import ImageIndex
from fusion_captioner.search.indexed_images import load_images, read_indexed_image

SHOWN = ("image", "text", "score", "matching", "captions", "images")


@dataclass(frozen=True)
class Query:
    """A text or a picture to search by, with its embedding."""

    text: str | None
    picture: Image.Image | None
    embedding: np.ndarray

    @classmethod
    def of(cls, text: str | None, image: str | None, retriever: Retriever) -> "Query":
        """The query of a text, or of an image: a file or a URL."""
        if image is None:
            (embedding,) = retriever.embed_texts([text or ""])
            return cls(text, None, embedding)
        if is_url(image):
            picture = load_image(image)
        else:
            # as indexed images are read, so that an image is found to be the same as itself
            picture = open_image({"path": image, "bytes": None}, image, retriever.image_processor)
        (embedding,) = retriever.embed_images([picture])
        return cls(None, picture, embedding)


def search_index(
    image_index: ImageIndex, rows: datasets.Dataset, retriever: Retriever, query: Query, top: int, rerank: int = 0
) -> tuple[list[dict[str, Any]], list[str]]:
    """
    The rows that are closest to a query.

    Args:
        rows: searchable rows of the index.
        top: results.
        rerank: candidates that the score of fused pairs orders, 0 for none.

    Returns:
        the results, best first, and a line for each image that could not be read for re-ranking.

    Raises:
        ValueError: the checkpoint has no score of fused pairs.
    """
    if rerank and not retriever.can_match:
        raise ValueError(
            f"--rerank ({rerank}): {retriever.name} has no score of fused pairs (`matching_loss_weight` is 0); leave "
            "--rerank out, or index with a checkpoint that was trained with a matching loss."
        )
    found = rows.get_nearest_examples(EMBEDDING, query.embedding, k=min(max(top, rerank), len(rows)))
    results = [
        {name: values[place] for name, values in found.examples.items()} | {"score": round(float(score), 4)}
        for place, score in enumerate(found.scores)
    ]
    problems: list[str] = []
    if rerank:
        candidates, others = results[:rerank], results[rerank:]
        if query.picture is None:
            candidates = _rerank_images(candidates, query.text or "", image_index, retriever, problems)
        else:
            _score(candidates, retriever.match([row["text"] for row in candidates], [query.picture])[:, 0])
            candidates = _best_first(candidates, retriever)
        results = candidates + others
    shown = [{name: row[name] for name in SHOWN if name in row and row[name] != []} for row in results[:top]]
    return shown, problems


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
        images = load_images(manifest.source, manifest.layout, manifest.split, manifest.columns)
    readable, pictures, unreadable = [], [], []
    for row in candidates:
        try:
            pictures.append(read_indexed_image(row, images, retriever.image_processor))
            readable.append(row)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            unreadable.append(row)
    if readable:
        _score(readable, retriever.match([text], pictures)[0])
        readable = _best_first(readable, retriever)
    return readable + unreadable


def _best_first(rows: list[dict[str, Any]], retriever: Retriever) -> list[dict[str, Any]]:
    """By the sum of both logits: the matching score has learned what the towers, which drew its negatives, miss."""
    return sorted(rows, key=lambda row: -(retriever.inverse_temperature * row["score"] + row["matching"]))


def _score(rows: list[dict[str, Any]], logits: np.ndarray) -> None:
    """Give each row its `matching`, a logit: above 0 where text and image rather match than not."""
    for row, logit in zip(rows, logits.tolist(), strict=True):
        row["matching"] = round(logit, 4)

"""Recall at K of image-text retrieval, both ways, as the literature reports it for Flickr and COCO.

I: images, T: texts
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

RANKS = (1, 5, 10)
# rows ranked at a time, so that comparing 5,000 images with 25,000 texts needs little memory besides the scores
CHUNK = 256


def retrieval_recall(
    similarity: ArrayLike, text_images: ArrayLike, fold_size: int | None = None, ranks: Sequence[int] = RANKS
) -> dict[str, float]:
    """Share of queries with a right answer among the first K (Hodosh, Young & Hockenmaier 2013, section 4.2).

    For an image, each of its texts is a right answer; for a text, only its image is. A wrong candidate with the same
    score as the right one comes before it, so that equal scores for all candidates earn nothing.

    Args:
        similarity: scores of shape (I, T), higher is better.
        text_images: for each of the T texts the row of its image; an image has one or more texts.
        fold_size: images to search among: all (the 1k protocol on 1,000 images, the 5k protocol on 5,000), or the mean
            over folds of so many images in their order with their texts (COCO's 1k protocol: 5 folds of 1,000 of
            5,000).
        ranks: the values of K.

    Returns:
        `"image_to_text_R@1"`, `"text_to_image_R@1"`, ... from 0 to 1.

    Raises:
        ValueError: shapes or indices that do not fit, an image without text, scores that are no numbers.
    """
    similarity, text_images = np.asarray(similarity), np.asarray(text_images)
    _check(similarity, text_images, fold_size, ranks)
    fold_size = fold_size or len(similarity)
    folds = []
    for start in range(0, len(similarity), fold_size):
        texts = np.flatnonzero((text_images >= start) & (text_images < start + fold_size))
        fold = similarity[start : start + fold_size][:, texts]
        folds.append(_recall(fold, text_images[texts] - start, ranks))
    return {name: float(np.mean([fold[name] for fold in folds])) for name in folds[0]}


def _recall(similarity: np.ndarray, text_images: np.ndarray, ranks: Sequence[int]) -> dict[str, float]:
    image_ranks = np.empty(len(similarity), dtype=np.int64)
    better_images = np.zeros(len(text_images), dtype=np.int64)
    right_scores = similarity[text_images, np.arange(len(text_images))]  # (T,)
    for start in range(0, len(similarity), CHUNK):
        scores = similarity[start : start + CHUNK]
        own = text_images == np.arange(start, start + len(scores))[:, None]
        best_own = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
        image_ranks[start : start + CHUNK] = ((scores >= best_own) & ~own).sum(axis=1)
        better_images += ((scores >= right_scores) & ~own).sum(axis=0)
    found = {"image_to_text": image_ranks, "text_to_image": better_images}
    return {f"{way}_R@{k}": float((better < k).mean()) for way, better in found.items() for k in ranks}


def _check(similarity: np.ndarray, text_images: np.ndarray, fold_size: int | None, ranks: Sequence[int]) -> None:
    if similarity.ndim != 2 or 0 in similarity.shape:
        raise ValueError(f"`similarity` {similarity.shape} must have the shape (images, texts), at least one of each.")
    if text_images.shape != similarity.shape[1:]:
        raise ValueError(
            f"`text_images` {text_images.shape} must hold the image of each of the {similarity.shape[1]} texts."
        )
    if not np.isfinite(similarity).all():
        raise ValueError("`similarity` holds values that are not finite; a model that diverged cannot be ranked.")
    missing = np.setdiff1d(np.arange(len(similarity)), text_images)
    if len(missing):
        raise ValueError(f"image {missing[0]} has no text in `text_images`; leave out images without texts.")
    if text_images.min() < 0 or text_images.max() >= len(similarity):
        wrong = text_images[(text_images < 0) | (text_images >= len(similarity))][0]
        raise ValueError(f"`text_images` names image {wrong}, and there are {len(similarity)}; number them from 0.")
    if fold_size is not None and (fold_size < 1 or len(similarity) % fold_size):
        raise ValueError(f"`fold_size` ({fold_size}) must divide the number of images ({len(similarity)}).")
    if not ranks or min(ranks) < 1:
        raise ValueError(f"`ranks` ({ranks!r}) must be numbers of at least 1.")

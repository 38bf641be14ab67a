"""CIDEr-D (Vedantam, Zitnick & Parikh 2015, "CIDEr: Consensus-based Image Description Evaluation").

As coco-caption computes it and reports it as "CIDEr": tf-idf vectors of n-grams for n = 1…4, cosine similarity to each
reference with the candidate's weights clipped to the reference's, a Gaussian penalty (σ = 6) on the difference of
lengths, mean over n and references, times 10.

R: reference captions of all images together, E: distinct (reference, n-gram) pairs, C: predicted captions
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from fusion_captioner.metrics.ngrams import MAX_ORDER, NgramCounts, count_ngrams, find_sorted
from fusion_captioner.metrics.tokenization import (
    Caption,
    Tokenizer,
    Tokens,
    check_corpus,
    to_tokens,
    tokenize_caption,
    tokenize_references,
    tokenizer_name,
)

SIGMA = 6.0


class DocumentFrequencies:
    """In how many images' references each n-gram occurs, counted once over a reference corpus.

    The corpus decides the score: frequencies from 100 images give .05–.15 more than those from 5,000. So its name goes
    into the signature. Self-critical training takes the references of its training set.

    Attributes:
        corpus: name of the corpus.
        tokenizer: name of the tokenizer that made its tokens.
        num_images: images in the corpus.
    """

    def __init__(self, hashes: np.ndarray, counts: np.ndarray, num_images: int, corpus: str, tokenizer: str):
        self._hashes = hashes  # (distinct n-grams,) uint64, sorted
        self._counts = counts  # (distinct n-grams,) images that have it
        self.num_images = num_images
        self.corpus = corpus
        self.tokenizer = tokenizer

    @classmethod
    def from_references(
        cls,
        references: Sequence[Sequence[Caption]],
        corpus: str,
        tokenizer: Tokenizer | None = tokenize_caption,
    ) -> "DocumentFrequencies":
        """Counts the document frequencies of a corpus.

        Args:
            references: for each image its reference captions: strings, or token sequences where `tokenizer` is `None`.
            corpus: its name in signatures, such as `"COCO train2017"`.
            tokenizer: callable from string to tokens, or `None` for captions that are tokens already.

        Raises:
            ValueError: if there is no image, an image has no reference, or a caption is of the wrong type.
        """
        tokens = tokenize_references(references, tokenizer)
        ngrams, image_of_reference = _count_references(tokens)
        hashes, gram = np.unique(ngrams.hashes, return_inverse=True)
        counts = _count_images(image_of_reference[ngrams.captions], gram, len(hashes))
        return cls(hashes, counts, len(tokens), corpus, tokenizer_name(tokenizer))

    def idf(self, hashes: np.ndarray) -> np.ndarray:
        """log(images / max(1, document frequency)) of n-grams, as float64; an unseen n-gram counts as seen once."""
        position, known = find_sorted(self._hashes, hashes)
        frequency = np.ones(len(hashes))
        frequency[known] = self._counts[position[known]]
        return np.log(self.num_images) - np.log(frequency)

    def save(self, path: str | Path) -> None:
        """Writes the frequencies to a NumPy `.npz` file at exactly `path`."""
        with open(path, "wb") as file:
            np.savez_compressed(
                file,
                hashes=self._hashes,
                counts=self._counts.astype(np.uint32),
                num_images=self.num_images,
                corpus=self.corpus,
                tokenizer=self.tokenizer,
            )

    @classmethod
    def load(cls, path: str | Path) -> "DocumentFrequencies":
        """Reads frequencies that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file of document frequencies at '{path}'.")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(
                    arrays["hashes"],
                    arrays["counts"],
                    int(arrays["num_images"]),
                    str(arrays["corpus"]),
                    str(arrays["tokenizer"]),
                )
        except Exception as error:  # zipfile, numpy and missing keys each raise something else
            raise ValueError(
                f"'{path}' holds no document frequencies ({error}): write it with `DocumentFrequencies.save`."
            ) from error


class CiderD:
    """CIDEr-D against fixed references: document frequencies and reference vectors are computed once, here.

    ```python
    cider = CiderD(references)                                  # all training images, once
    rewards = cider.score(samples, images=[7, 7, 7, 12, 12, 12])  # every step
    ```

    Args:
        references: for each image its reference captions: strings, or token sequences (words or integer ids) where
            `tokenizer` is `None`.
        document_frequencies: of another corpus; by default those of `references` themselves.
        tokenizer: callable from string to tokens, or `None` for captions that are tokens already.

    Raises:
        ValueError: if there is no image, an image has no reference, a caption is of the wrong type, or
            `document_frequencies` were counted with another tokenizer.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Caption]],
        document_frequencies: DocumentFrequencies | None = None,
        tokenizer: Tokenizer | None = tokenize_caption,
    ):
        name = tokenizer_name(tokenizer)
        if document_frequencies is not None and document_frequencies.tokenizer != name:
            raise ValueError(
                f"`document_frequencies` of '{document_frequencies.corpus}' were counted with tokenizer "
                f"'{document_frequencies.tokenizer}', the references have '{name}': count them with the same "
                "tokenizer."
            )
        self.tokenizer = tokenizer
        tokens = tokenize_references(references, tokenizer)
        ngrams, image_of_reference = _count_references(tokens)
        self._hashes, gram = np.unique(ngrams.hashes, return_inverse=True)
        if document_frequencies is None:
            counts = _count_images(image_of_reference[ngrams.captions], gram, len(self._hashes))
            corpus = f"references of the {len(tokens)} scored images"
            document_frequencies = DocumentFrequencies(self._hashes, counts, len(tokens), corpus, name)
        self.document_frequencies = document_frequencies

        self._weights, self._norms = self._vectors(ngrams)  # (E,), (R, 4)
        self._lengths = ngrams.lengths  # (R,)
        # One sorted key for (reference, n-gram), so that both are found in a single binary search.
        self._keys = ngrams.captions * len(self._hashes) + gram  # (E,), sorted because `ngrams` is
        self._num_references = np.bincount(image_of_reference, minlength=len(tokens))  # (images,)
        self._first_reference = np.cumsum(self._num_references) - self._num_references  # (images,)

    def _vectors(self, ngrams: NgramCounts) -> tuple[np.ndarray, np.ndarray]:
        """tf-idf weight of every (caption, n-gram) pair, and the vectors' norms by caption and order (equation 1)."""
        weights = ngrams.counts * self.document_frequencies.idf(ngrams.hashes)
        squares = np.bincount(
            ngrams.captions * MAX_ORDER + ngrams.orders, weights**2, minlength=len(ngrams.lengths) * MAX_ORDER
        )
        return weights, np.sqrt(squares).reshape(-1, MAX_ORDER)

    def score(self, predictions: Sequence[Caption], images: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """CIDEr-D of each predicted caption; their mean is the corpus score.

        Args:
            predictions: C captions, of the same kind as the references; an image may have several or none.
            images: for each prediction the index of its image in `references`; by default prediction `i` is of image
                `i`.

        Returns:
            (C,) float64, from 0 to 10.

        Raises:
            ValueError: if `images` does not fit `predictions` or the references, or a caption is of the wrong type.
        """
        num_images = len(self._num_references)
        if len(predictions) == 0:
            raise ValueError("`predictions` is empty: pass at least one caption.")
        if images is None and len(predictions) != num_images:
            raise ValueError(
                f"`predictions` has {len(predictions)} captions for {num_images} images: pass one caption per image, "
                "or `images` with the index of each caption's image."
            )
        image = np.arange(num_images) if images is None else np.asarray(images)
        if image.shape != (len(predictions),) or image.dtype.kind not in "iu":
            raise ValueError(
                f"`images` is an array of {image.dtype} of shape {image.shape}: it must hold one integer for each of "
                f"the {len(predictions)} predictions."
            )
        if not (image.min() >= 0 and image.max() < num_images):
            raise ValueError(
                f"`images` has indices from {image.min()} to {image.max()}: there are references of images 0 to "
                f"{num_images - 1}."
            )
        tokens = [to_tokens(c, self.tokenizer, f"`predictions[{i}]`") for i, c in enumerate(predictions)]
        ngrams = count_ngrams(tokens)
        weights, norms = self._vectors(ngrams)

        # Every candidate meets each reference of its image: pairs (candidate, reference), in that order.
        num_pairs = self._num_references[image]  # (C,)
        first_pair = np.cumsum(num_pairs) - num_pairs
        pair_candidate = np.repeat(np.arange(len(image)), num_pairs)
        pair_reference = np.arange(len(pair_candidate)) + np.repeat(
            self._first_reference[image] - first_pair, num_pairs
        )

        # Every n-gram of a candidate that any reference has is looked up in each reference of its image.
        gram, known = find_sorted(self._hashes, ngrams.hashes)
        gram, caption, order, weights = gram[known], ngrams.captions[known], ngrams.orders[known], weights[known]
        copies = num_pairs[caption]
        pair = np.arange(copies.sum()) + np.repeat(first_pair[caption] - np.cumsum(copies) + copies, copies)
        key = pair_reference[pair] * len(self._hashes) + np.repeat(gram, copies)
        entry, shared = find_sorted(self._keys, key)
        pair, entry, order = pair[shared], entry[shared], np.repeat(order, copies)[shared]
        reference_weights = self._weights[entry]
        # "D": the candidate's weight is clipped to the reference's, so that repeating a word earns nothing.
        products = np.minimum(np.repeat(weights, copies)[shared], reference_weights) * reference_weights
        dots = np.bincount(pair * MAX_ORDER + order, products, minlength=len(pair_candidate) * MAX_ORDER)

        norm_products = norms[pair_candidate] * self._norms[pair_reference]  # (pairs, 4)
        cosines = np.divide(
            dots.reshape(-1, MAX_ORDER), norm_products, out=np.zeros_like(norm_products), where=norm_products > 0
        )
        # coco-caption measures length in bigrams.
        length_difference = (
            np.maximum(ngrams.lengths - 1, 0)[pair_candidate] - np.maximum(self._lengths - 1, 0)[pair_reference]
        )
        similarity = cosines.mean(axis=1) * np.exp(-(length_difference**2) / (2 * SIGMA**2))
        return 10 * np.bincount(pair_candidate, similarity, minlength=len(image)) / num_pairs


def cider_d(
    predictions: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    document_frequencies: DocumentFrequencies | None = None,
    tokenizer: Tokenizer | None = tokenize_caption,
) -> tuple[float, np.ndarray]:
    """CIDEr-D of one caption per image, in one shot.

    Args:
        predictions: one caption per image: strings, or token sequences where `tokenizer` is `None`.
        references: for each image its reference captions.
        document_frequencies: of another corpus; by default those of `references`, as coco-caption has it.
        tokenizer: callable from string to tokens, or `None`.

    Returns:
        the corpus score (the mean; papers print it times 100) and the scores of the images, (images,) float64.

    Raises:
        ValueError: if predictions and references do not fit, are empty or of the wrong type.
    """
    check_corpus(predictions, references)
    per_image = CiderD(references, document_frequencies, tokenizer).score(predictions)
    return float(per_image.mean()), per_image


def _count_references(references: list[list[Tokens]]) -> tuple[NgramCounts, np.ndarray]:
    """N-grams of all references in one row, and the image of each reference, (R,)."""
    image_of_reference = np.repeat(np.arange(len(references)), [len(captions) for captions in references])
    return count_ngrams(list(chain.from_iterable(references))), image_of_reference


def _count_images(image: np.ndarray, gram: np.ndarray, num_grams: int) -> np.ndarray:
    """In how many images each n-gram occurs, (num_grams,), from the image and the n-gram of each occurrence."""
    key = np.sort(image * num_grams + gram)
    first = np.diff(key, prepend=-1) != 0  # of each n-gram in each image; sorting is faster here than `np.unique`
    return np.bincount(key[first] % max(num_grams, 1), minlength=num_grams)

"""All the scores that captioning papers report, in one call, with the signature that makes them comparable."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusion_captioner import __version__
from fusion_captioner.metrics.bleu import bleu
from fusion_captioner.metrics.cider import CiderD, DocumentFrequencies
from fusion_captioner.metrics.meteor import STEMMER_VERSION, meteor_exact_stem
from fusion_captioner.metrics.meteor_java import meteor
from fusion_captioner.metrics.rouge import rouge_l
from fusion_captioner.metrics.tokenization import (
    Caption,
    Tokenizer,
    check_corpus,
    find_tokenizer,
    tokenize_caption,
    tokenizer_name,
)

logger = logging.getLogger(__name__)

DEFAULT_METRICS = ("CIDEr", "BLEU", "ROUGE-L", "METEOR-exact-stem")
METRICS = (*DEFAULT_METRICS, "METEOR")

_VARIANTS = {
    "CIDEr": "CIDEr-D n=4 sigma=6",
    "BLEU": "BLEU coco-caption closest",
    "ROUGE-L": "ROUGE-L beta=1.2",
    "METEOR-exact-stem": f"METEOR-exact-stem 1.5 en norm snowball={STEMMER_VERSION}",
    "METEOR": "METEOR 1.5 en norm",
}


def score_captions(
    predictions: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    document_frequencies: DocumentFrequencies | None = None,
    tokenizer: Tokenizer | str | None = tokenize_caption,
    per_image: bool = False,
) -> dict[str, Any]:
    """Scores one predicted caption per image against its reference captions.

    All scores are fractions as coco-caption returns them (papers print them times 100); CIDEr goes up to 10, the
    others to 1.

    ```python
    >>> scores = score_captions(["a dog runs"], [["a dog is running", "the dog runs fast"]])
    >>> scores["BLEU-1"], scores["signature"]
    ```

    Args:
        predictions: one caption per image: strings, or token sequences where `tokenizer` is `None`.
        references: for each image its reference captions, at least one.
        metrics: which of `"CIDEr"`, `"BLEU"`, `"ROUGE-L"`, `"METEOR-exact-stem"` and `"METEOR"`, which needs Java.
        document_frequencies: for CIDEr, of another corpus; by default those of `references`, as coco-caption has it.
        tokenizer: name of a tokenizer in `tokenization.TOKENIZERS`, a callable from string to tokens, or `None` for
            captions that are already tokenized. `"auto"`, the default, serves every language.
        per_image: also return the scores of each image.

    Returns:
        the scores as floats under `"CIDEr"`, `"BLEU-1"` to `"BLEU-4"`, `"ROUGE-L"`, `"METEOR-exact-stem"`, `"METEOR"`;
        `"signature"`, a string that two results must share to be compared; and with `per_image` under `"per_image"` a
        dict from the same names to float64 arrays (images,).

    Raises:
        ValueError: if predictions and references do not fit, are empty or of the wrong type, or a metric is unknown.
        FileNotFoundError: if `"METEOR"` is asked for and Java or pycocoevalcap is not installed.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"`metrics` is {metrics!r}: choose from {', '.join(METRICS)}.")
    check_corpus(predictions, references)
    if isinstance(tokenizer, str):
        tokenizer = find_tokenizer(tokenizer)

    corpus: dict[str, float] = {}
    images: dict[str, np.ndarray] = {}
    variants = dict(_VARIANTS)
    if "CIDEr" in metrics:
        cider = CiderD(references, document_frequencies, tokenizer)
        images["CIDEr"] = cider.score(predictions)
        corpus["CIDEr"] = float(images["CIDEr"].mean())
        if not corpus["CIDEr"]:
            logger.warning("CIDEr is 0: %s", _why_zero(cider, predictions, references))
        variants["CIDEr"] += f" df={cider.document_frequencies.corpus}"
    if "BLEU" in metrics:
        corpus_bleu, images_bleu = bleu(predictions, references, tokenizer)
        for order, score in enumerate(corpus_bleu):
            corpus[f"BLEU-{order + 1}"] = float(score)
            images[f"BLEU-{order + 1}"] = images_bleu[:, order]
    for name, metric in (("ROUGE-L", rouge_l), ("METEOR-exact-stem", meteor_exact_stem), ("METEOR", meteor)):
        if name in metrics:
            corpus[name], images[name] = metric(predictions, references, tokenizer)

    numbers = sorted({len(captions) for captions in references})
    signature = [
        *(variants[name] for name in METRICS if name in metrics),
        f"tokenizer={tokenizer_name(tokenizer)}",
        f"images={len(references)}",
        f"references={'-'.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))}",
        f"fusion_captioner={__version__}",
    ]
    return {**corpus, "signature": " | ".join(signature), **({"per_image": images} if per_image else {})}


def _why_zero(cider: CiderD, predictions: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> str:
    if cider.document_frequencies.num_images == 1:
        return "it weighs words by how few of the images have them, and there is one image; score more images"
    split: Any = cider.tokenizer or tuple
    for prediction, captions in zip(predictions, references):
        if set(split(prediction)) & {token for caption in captions for token in split(caption)}:
            return "all images have the words that captions share with their references; score more images"
    return "the captions share no words with their references; check that they are in the same language"

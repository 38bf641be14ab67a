"""How well a retrieval head finds images by their captions and captions by their images.

I: images, T: captions, K: candidates, L: tokens, P: regions, Dv: width of a region
"""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch

from fusion_captioner.data.annotated_images import bad_image_error
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.image_files import open_image
from fusion_captioner.image_text_retrieval import FusionCaptionerForImageTextRetrieval
from fusion_captioner.metrics.retrieval import retrieval_recall

# Pairs per fused batch
PAIRS = 1024


@torch.inference_mode()
def retrieval_scores(
    model: FusionCaptionerForImageTextRetrieval,
    processor: Any,
    rows: datasets.Dataset,
    features: ImageFeatures | None = None,
    *,
    batch_size: int = 64,
    candidates: int = 20,
) -> dict[str, float]:
    """
    Recall at 1, 5 and 10, both ways, of all captions of all images: by the towers, and, where the model has a matching
    score, with the best candidates of each query re-ranked.

    Args:
        model: evaluated in evaluation mode; its own mode is restored.
        processor: its processor.
        rows: with `image`, `image_id` and `captions`.
        features: cached grid regions in place of the images.
        batch_size: images, or captions, per batch.
        candidates: K; 0: no re-ranking.

    Returns:
        `image_to_text_R@1`, ..., `mean_R@1` (of both ways); and, re-ranked, `reranked_image_to_text_R@1`, ...

    Raises:
        FileNotFoundError, OSError, ValueError: an image cannot be decoded.
    """
    training = model.training
    model.eval()
    try:
        regions, image_embeds = _encode_images(model, processor, rows, features, batch_size)
        captions = [caption for texts in rows["captions"] for caption in texts]
        text_images = np.repeat(np.arange(len(rows)), [len(texts) for texts in rows["captions"]])
        text_embeds = torch.cat(
            [
                model.get_text_features(
                    **_tokens(model, processor, captions[start : start + batch_size]), return_dict=True
                )["pooler_output"]
                for start in range(0, len(captions), batch_size)
            ]
        )
        logits = (model.alignment.inverse_temperature * image_embeds @ text_embeds.T).float()  # (I, T)
        towers = logits.cpu().numpy()
        scores = _recalls(towers, towers, text_images)
        if candidates and model.config.matching_loss_weight:
            for_images, for_texts = _reranked(model, processor, captions, regions, logits, candidates, batch_size)
            reranked = _recalls(for_images, for_texts, text_images)
            scores |= {f"reranked_{name}": value for name, value in reranked.items()}
    finally:
        model.train(training)
    return scores


def _encode_images(
    model: FusionCaptionerForImageTextRetrieval,
    processor: Any,
    rows: datasets.Dataset,
    features: ImageFeatures | None,
    batch_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Regions `(I, P, Dv)`, in half precision as the cache has them, and embeddings `(I, E)`."""
    regions, embeds = [], []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        if features is None:
            try:
                pictures = [
                    open_image(image, image_id, processor.image_processor)
                    for image, image_id in zip(part["image"], part["image_id"], strict=True)
                ]
            except (OSError, ValueError) as error:
                raise bad_image_error(error) from error
            pixel_values = processor(images=pictures, return_tensors="pt")["pixel_values"].to(model.device)
            states = model.get_image_hidden_states(pixel_values)
        else:
            states = torch.stack([features[image_id] for image_id in part["image_id"]]).to(model.device)
        embeds.append(model.get_image_features(image_hidden_states=states, return_dict=True)["pooler_output"])
        regions.append(states.half())
    return torch.cat(regions), torch.cat(embeds)


def _tokens(model: FusionCaptionerForImageTextRetrieval, processor: Any, captions: Sequence[str]) -> dict[str, Any]:
    return dict(processor(text=list(captions), add_eos=True, truncation=True, return_tensors="pt").to(model.device))


def _reranked(
    model: FusionCaptionerForImageTextRetrieval,
    processor: Any,
    captions: Sequence[str],
    regions: torch.Tensor,
    logits: torch.Tensor,
    candidates: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Scores `(I, T)` of captions for images, and of images for captions.

    The matching score has learned to distinguish true pairs from negatives drawn by the towers' similarity, so that
    its logit is the logarithm of what true pairs have beyond it: the two are added.
    """
    images, texts = logits.shape
    wanted_texts = logits.topk(min(candidates, texts), dim=1).indices  # (I, K)
    wanted_images = logits.topk(min(candidates, images), dim=0).indices  # (K, T)
    of_image = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, wanted_texts, True)
    of_text = torch.zeros_like(logits, dtype=torch.bool).scatter_(0, wanted_images, True)
    matching = torch.zeros_like(logits)
    for start in range(0, texts, batch_size):
        inputs = _tokens(model, processor, captions[start : start + batch_size])
        states = model.get_text_features(**inputs, return_dict=True)["last_hidden_state"]
        chosen = (of_image | of_text)[:, start : start + batch_size]
        for pairs in chosen.T.nonzero().split(PAIRS):  # row of the text, row of the image
            match = model.rerank(pairs, states, regions, inputs["attention_mask"])
            matching[pairs[:, 1], start + pairs[:, 0]] = match.float()
    combined = logits + matching
    # what is no candidate stays behind those that are, in the towers' order
    floor = logits - (combined.max() - combined.min()) - (logits.max() - logits.min()) - 1
    return (
        torch.where(of_image, combined, floor).cpu().numpy(),
        torch.where(of_text, combined, floor).cpu().numpy(),
    )


def _recalls(for_images: np.ndarray, for_texts: np.ndarray, text_images: np.ndarray) -> dict[str, float]:
    """Of scores `(I, T)` of captions for images, and of images for captions."""
    found = retrieval_recall(for_images, text_images) | {
        name: value
        for name, value in retrieval_recall(for_texts, text_images).items()
        if name.startswith("text_to_image")
    }
    return found | {"mean_R@1": (found["image_to_text_R@1"] + found["text_to_image_R@1"]) / 2}

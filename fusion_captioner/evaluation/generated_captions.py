"""Evaluation: a caption for each image, or an answer to each question, from its prompt alone, and its scores against
the references."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm

from fusion_captioner.data.annotated_images import bad_image_error
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.image_files import open_image
from fusion_captioner.metrics.caption_scores import score_captions
from fusion_captioner.metrics.cider import DocumentFrequencies
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor

logger = logging.getLogger(__name__)


def generate_captions(
    model: FusionCaptionerForConditionalGeneration,
    processor: FusionCaptionerProcessor,
    rows: datasets.Dataset,
    features: ImageFeatures | None = None,
    *,
    prompt: str = "",
    language: str | None = None,
    batch_size: int = 32,
    show_progress: bool = False,
    skip_bad_images: bool = False,
    **generation_settings: Any,
) -> dict[str, str]:
    """
    A caption for every row; with several processes each captions its share, and all get all.

    Args:
        rows: with `image_id` and `image`; their captions are not read.
        features: cached grid regions in place of the images.
        prompt: what every caption begins with; it is not part of what is returned.
        language: of the captions, for a captioner of several languages.
        show_progress: a progress bar, where it goes to a terminal.
        skip_bad_images: leave out an image that cannot be decoded, with a warning, instead of raising.
        generation_settings: for `model.generate`, such as `num_beams`.

    Returns:
        captions by `image_id`, in the order of the rows.

    Raises:
        FileNotFoundError, OSError, ValueError: an image cannot be decoded; the message names it and the fix.
    """
    texts = generate_texts(
        model,
        processor,
        rows,
        [prompt] * len(rows),
        features,
        language=language,
        batch_size=batch_size,
        show_progress=show_progress,
        skip_bad_images=skip_bad_images,
        **generation_settings,
    )
    image_ids = rows["image_id"]
    return {image_ids[index]: text for index, text in texts.items()}


@torch.inference_mode()
def generate_texts(
    model: FusionCaptionerForConditionalGeneration,
    processor: FusionCaptionerProcessor,
    rows: datasets.Dataset,
    prompts: Sequence[str],
    features: ImageFeatures | None = None,
    *,
    language: str | None = None,
    hides_images: bool = False,
    batch_size: int = 32,
    show_progress: bool = False,
    skip_bad_images: bool = False,
    **generation_settings: Any,
) -> dict[int, str]:
    """
    What follows the prompt of every row, an image of which may have several; else as [`generate_captions`].

    Args:
        prompts: one per row.
        language: of all texts.
        hides_images: show [`~FusionCaptionerForConditionalGeneration.hidden_image`] instead of the images.

    Returns:
        texts by the number of the row.
    """
    if generation_settings.get("num_beams") == 1:
        # the captioner's own length penalty is one of beam search
        generation_settings["length_penalty"] = 1.0
    process = PartialState()
    mine = range(process.process_index, len(rows), process.num_processes)
    image_ids = rows["image_id"]
    images = rows.select_columns(["image"])

    def read(index: int) -> Image.Image | None:
        try:
            return open_image(images[index]["image"], image_ids[index], processor.image_processor)
        except (OSError, ValueError) as error:
            if not skip_bad_images:
                raise bad_image_error(error) from error
            logger.warning("image left out: %s", error)
            return None

    training = model.training
    model.eval()
    found: list[tuple[int, str, bool]] = []
    try:
        starts = range(0, len(mine), batch_size)
        for start in tqdm(starts, desc="generating", disable=None if show_progress else True, leave=False):
            indices = list(mine[start : start + batch_size])
            pictures = None
            if features is None and not hides_images:
                readable = {index: picture for index in indices if (picture := read(index)) is not None}
                if not readable:
                    continue
                indices, pictures = list(readable), list(readable.values())
            texts = [prompts[index] for index in indices]
            inputs = processor(images=pictures, text=texts, language=language, return_tensors="pt")
            if hides_images:
                inputs["image_hidden_states"] = model.hidden_image(len(indices))
            elif features is not None:
                inputs["image_hidden_states"] = torch.stack([features[image_ids[index]] for index in indices])
            generated = model.generate(**inputs.to(model.device), **generation_settings)  # type: ignore[misc]
            words = generated[:, inputs["input_ids"].shape[1] :]
            texts = processor.batch_decode(words, skip_special_tokens=True)
            is_cut = words.ne(processor.eos_token_id).all(dim=1).tolist()
            found.extend((index, text.strip(), cut) for index, text, cut in zip(indices, texts, is_cut))
    finally:
        model.train(training)
    everything = sorted(gather_object(found))
    if process.is_main_process and (cut := sum(is_cut for _, _, is_cut in everything)):
        logger.info(
            "%d of %d generated texts were cut at their maximum length, before their end; allow more new tokens",
            *(cut, len(everything)),
        )
    return {index: text for index, text, _ in everything}


def score_generated(
    captions: Mapping[str, str],
    rows: datasets.Dataset,
    tokenizer: str = "auto",
    document_frequencies: DocumentFrequencies | None = None,
) -> dict[str, Any]:
    """CIDEr, BLEU-1..4, ROUGE-L and METEOR-exact-stem of captions by `image_id`, against those of `rows`, and
    their `signature`; `tokenizer` and `document_frequencies` as in [`score_captions`]."""
    references = dict(zip(rows["image_id"], rows["captions"]))
    return score_captions(
        list(captions.values()),
        [references[image_id] for image_id in captions],
        tokenizer=tokenizer,
        document_frequencies=document_frequencies,
    )

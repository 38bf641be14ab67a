"""Where a captioner looked while it wrote: its words, each with the attention over the picture's regions.

L: tokens, P: regions, h, w: grid of the regions (h·w = P)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fusion_captioner.image_loading import ImageSource


@dataclass(frozen=True, slots=True)
class AttendedCaption:
    """
    Args:
        words: those of the caption, in order.
        maps (`np.ndarray` of shape `(words, h, w)`): weights of the regions while the word was written, the mean over
            heads and over the word's tokens; each map sums to 1.
    """

    words: list[str]
    maps: np.ndarray

    @property
    def text(self) -> str:
        return " ".join(self.words)


def grid_shape(regions: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """
    Rows and columns of the regions of an image.

    Args:
        regions: P.
        image_size: (H, W) of the pixels; the grid has their proportions.

    Raises:
        ValueError: if the regions are no grid of these proportions.
    """
    height, width = image_size
    for rows in range(1, regions + 1):
        if regions % rows == 0 and rows * width == regions // rows * height:
            return rows, regions // rows
    raise ValueError(
        f"`regions` ({regions}) are no grid in the proportions of `image_size` ({height} x {width}); their attention "
        "cannot be drawn on the picture."
    )


@torch.inference_mode()
def attended_captions(
    model: Any, processor: Any, images: Sequence[ImageSource], **settings: Any
) -> list[AttendedCaption]:
    """
    Caption pictures, and read from the model where it looked for each word.

    The caption is generated first, by beam search or as `settings` say. The model then reads the caption in one pass;
    the attention at the token before a word is the attention that the word was written from.

    Args:
        model: a `FusionCaptionerForConditionalGeneration` whose fusion attends to regions (`attention` or
            `co_attention`).
        processor: its processor.
        images: as the processor takes them.
        settings: for `generate`.

    Raises:
        ValueError: if the fusion has no attention.
    """
    pixel_values = processor(images=list(images), return_tensors="pt")["pixel_values"].to(model.device)
    regions = model.get_image_hidden_states(pixel_values)
    rows, columns = grid_shape(regions.shape[1], tuple(pixel_values.shape[-2:]))
    tokenizer = processor.tokenizer
    captions = []
    for image_hidden_states in regions[:, None]:
        sequence = model.generate(image_hidden_states=image_hidden_states, **settings)[:1]
        attentions = model(
            input_ids=sequence, image_hidden_states=image_hidden_states, output_attentions=True
        ).attentions
        if attentions is None:
            raise ValueError(
                f"`fusion_type` ({model.config.fusion_type!r}) does not attend to regions, so that there is nothing "
                f"to show; give a captioner with `attention` or `co_attention`."
            )
        weights = attentions[0][0].mean(dim=0).float().cpu().numpy()  # (L, P)
        words, of_words = words_of_tokens(tokenizer, sequence[0].tolist())
        maps = [
            # the token before wrote the token
            np.mean([weights[position - 1] for position in positions], axis=0).reshape(rows, columns)
            for positions in of_words
        ]
        captions.append(AttendedCaption(words, np.stack(maps) if maps else np.empty((0, rows, columns))))
    return captions


def words_of_tokens(tokenizer: Any, ids: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """
    The words of a sequence, and the positions of each word's tokens.

    Args:
        tokenizer: any; pieces belong to one word where decoding puts no space between them.
        ids: a whole sequence, special tokens among it.
    """
    positions: list[list[int]] = []
    words: list[str] = []
    for position in range(1, len(ids)):
        if ids[position] in tokenizer.all_special_ids:
            continue
        words = tokenizer.decode(ids[: position + 1], skip_special_tokens=True).split()
        while len(positions) < len(words):
            positions.append([])
        if words:
            positions[len(words) - 1].append(position)
    return words, positions

"""Captions that are explained: for every word a map of how much each place of the photo has to do with it.

N: words, L: tokens, P: regions, h, w: grid of the regions (h·w = P), H, W: height and width of the photo in pixels
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
import torch
from PIL import Image

from fusion_captioner.image_loading import ImageSource, load_image, seen_box, target_size
from fusion_captioner.image_processing_fusion_captioner import SETTINGS
from fusion_captioner.inference.attributions import ATTRIBUTIONS, ReadCaption
from fusion_captioner.metrics.tokenization import SPACELESS_SCRIPTS

# What a caption is split into: characters of scripts without spaces, and whatever stands between spaces.
_PIECE = regex.compile(rf"[{SPACELESS_SCRIPTS}]\p{{M}}*\p{{P}}*|[^\s{SPACELESS_SCRIPTS}]+")
DEFAULT_METHOD = "occlusion"  # the most faithful one in benchmarks/explanations.py


@dataclass(frozen=True, slots=True)
class ExplainedCaption:
    """
    Args:
        text: the caption.
        words: those of the caption, in order.
        region_maps (`np.ndarray` of shape `(N, h, w)`): the regions' shares in each word, which add up to 1.
        log_probabilities (`np.ndarray` of shape `(N,)`): natural logarithm of the probability of each word, given the
            photo and the words before it.
        photo_size: (H, W) of the photo, upright.
        box: left, upper, right and lower edge of what the model saw of it, in pixels.
    """

    text: str
    words: list[str]
    region_maps: np.ndarray
    log_probabilities: np.ndarray
    photo_size: tuple[int, int]
    box: tuple[float, float, float, float]

    @property
    def maps(self) -> np.ndarray:
        """The maps of all words in the photo's own geometry, `(N, H, W)`; see [`photo_map`]."""
        maps = [self.photo_map(word) for word in range(len(self.words))]
        return np.stack(maps) if maps else np.empty((0, *self.photo_size), np.float32)

    def photo_map(self, word: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """
        The map of a word on the photo, with cropping and resizing undone.

        Args:
            word: its place in the caption.
            size: (H, W) of the map; by default the photo's.

        Returns:
            float32 (H, W), which adds up to 1; 0 where the model did not see the photo.
        """
        height, width = size or self.photo_size
        rows, columns = height / self.photo_size[0], width / self.photo_size[1]
        left, right = (min(round(edge * columns), width - 1) for edge in (self.box[0], self.box[2] - 1 / columns))
        top, bottom = (min(round(edge * rows), height - 1) for edge in (self.box[1], self.box[3] - 1 / rows))
        regions = Image.fromarray(self.region_maps[word].astype(np.float32))
        seen = regions.resize((max(right - left, 0) + 1, max(bottom - top, 0) + 1), Image.Resampling.BILINEAR)
        weights = np.zeros((height, width), np.float32)
        weights[top : top + seen.height, left : left + seen.width] = np.asarray(seen) / np.asarray(seen).sum()
        return weights


def explain_captions(
    model: Any,
    processor: Any,
    images: Sequence[ImageSource],
    method: str = DEFAULT_METHOD,
    texts: Sequence[str] | None = None,
    language: str | None = None,
    **settings: Any,
) -> list[ExplainedCaption]:
    """
    Caption photos, and explain each word of the captions.

    Args:
        model: a `FusionCaptionerForConditionalGeneration`.
        processor: its processor.
        images: photos, as the processor takes them.
        method: name of a function in `attributions.ATTRIBUTIONS`. Evidence against a word counts as 0. If no region
            supports a word, its map is uniform.
        texts: captions to explain, one per image; by default the model writes them.
        language: of the captions, for a captioner of several languages; by default its first.
        settings: for `generate`.

    Raises:
        ValueError: there is no such method, or it needs attention, which the fusion lacks; the texts do not fit the
            images; the regions of the image encoder are no grid.
    """
    if method not in ATTRIBUTIONS:
        raise ValueError(f"`method` ({method!r}) must be one of {', '.join(map(repr, ATTRIBUTIONS))}.")
    if isinstance(images, str | bytes):
        raise ValueError(f"`images` ({images!r:.60}) must be a list of photos; put it into a list.")
    if texts is not None and (isinstance(texts, str) or len(texts) != len(images)):
        given = "one string" if isinstance(texts, str) else f"{len(texts)} texts"
        raise ValueError(f"`texts` ({given}) do not fit {len(images)} images; give a list with one text per image.")
    explained = []
    for place, image in enumerate(images):
        photo = load_image(image)
        caption = read_caption(model, processor, photo, None if texts is None else texts[place], language, **settings)
        explained.append(explain_caption(caption, processor, photo, method))
    return explained


def read_caption(
    model: Any,
    processor: Any,
    photo: Image.Image,
    text: str | None = None,
    language: str | None = None,
    **settings: Any,
) -> ReadCaption:
    """
    A photo and its caption, as the model takes them.

    Args:
        model, processor, language, settings: see [`explain_captions`].
        photo: upright and RGB.
        text: the caption; by default the model writes it.
    """
    # gradients are wanted later, and tensors of inference mode never have any
    with torch.inference_mode(False), torch.no_grad():
        pixel_values = processor(images=photo, return_tensors="pt")["pixel_values"].to(model.device)
        regions = model.get_image_hidden_states(pixel_values)
        grid = grid_shape(regions.shape[1], tuple(pixel_values.shape[-2:]))
        if text is None:
            sequence = model.generate(image_hidden_states=regions, language=language, **settings)[:1]
        else:
            inputs = processor(text=[text], language=language, add_eos=True, return_tensors="pt")
            sequence = inputs["input_ids"].to(model.device)
    positions = [places for _, places in words_of_tokens(processor.tokenizer, sequence[0].tolist())]
    return ReadCaption(model, pixel_values, regions, grid, sequence, positions)


def explain_caption(caption: ReadCaption, processor: Any, photo: Image.Image, method: str) -> ExplainedCaption:
    """The caption with its maps; arguments as in [`explain_captions`] and [`read_caption`]."""
    ids = caption.sequence[0].tolist()
    with torch.inference_mode(False), torch.no_grad():
        log_probabilities = caption.word_log_probabilities(caption.regions)[0].float().cpu().numpy()
        maps = np.empty((0, *caption.grid), np.float32)
        if caption.positions:
            maps = shares(ATTRIBUTIONS[method](caption)).unflatten(1, caption.grid).cpu().numpy()
    settings = {name: getattr(processor.image_processor, name) for name in SETTINGS}
    size = (photo.height, photo.width)
    return ExplainedCaption(
        text=processor.tokenizer.decode(ids, skip_special_tokens=True).strip(),
        words=[word for word, _ in words_of_tokens(processor.tokenizer, ids)],
        region_maps=maps,
        log_probabilities=log_probabilities,
        photo_size=size,
        box=seen_box(size, target_size(settings) or size, settings["resize_mode"]),
    )


def shares(attributions: torch.Tensor) -> torch.Tensor:
    """Rows of numbers as shares that add up to 1 in each row. Negative numbers count as 0; a row without
    positive numbers becomes uniform."""
    positive = attributions.clamp(min=0)
    positive = torch.where(positive.sum(dim=-1, keepdim=True) > 0, positive, 1.0)
    return positive / positive.sum(dim=-1, keepdim=True)


def grid_shape(regions: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """
    Rows and columns of the regions of an image.

    Args:
        regions: P.
        image_size: (H, W) of the pixels, a row of regions per so many of them; what is left over at the end is a row
            of its own or none.

    Raises:
        ValueError: if the regions are no grid of this kind.
    """
    height, width = image_size
    for step in range(1, max(height, width) + 1):
        for rows, columns in ((-(-height // step), -(-width // step)), (height // step, width // step)):
            if rows * columns == regions:
                return rows, columns
    raise ValueError(
        f"`regions` ({regions}) are no grid in the proportions of `image_size` ({height} x {width}); they cannot be "
        "shown on the picture."
    )


def words_of_tokens(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """
    The words of a sequence, each with the positions of its tokens.

    Args:
        tokenizer: any; pieces belong to one word where decoding puts no space between them, and in scripts without
            spaces where they make one character.
        ids: a whole sequence, special tokens among it.
    """
    starts: list[int] = []  # pieces of the caption that words begin with
    positions: list[list[int]] = []
    waiting: list[int] = []  # tokens that are parts of a character that is not whole yet
    pieces: list[str] = []
    for position in range(1, len(ids)):
        if ids[position] in tokenizer.all_special_ids:
            continue
        waiting.append(position)
        text = tokenizer.decode(ids[: position + 1], skip_special_tokens=True)
        if text.endswith("\ufffd") and position + 1 < len(ids):
            continue
        before, pieces = len(pieces), _PIECE.findall(text)
        if len(pieces) > before:
            starts.append(before)
            positions.append([])
        if positions:
            positions[-1] += waiting
            waiting = []
    ends = [*starts[1:], len(pieces)]
    return [("".join(pieces[start:end]), places) for start, end, places in zip(starts, ends, positions)]

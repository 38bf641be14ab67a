"""
What a captioner says of some images, which tells how large the activations of its decoder become.

T: texts, D: hidden size
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fusion_captioner.export.int8 import evenly_spaced
from fusion_captioner.inference.decoder_states import DecoderStates
from fusion_captioner.inference.output_layer import OutputLayer
from fusion_captioner.inference.runtimes import Part
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor

# More images change no scale.
MAX_IMAGES = 64
_BATCH = 16


class CalibrationTexts:
    """
    Captions of images in each language of a captioner, as it generates them by default.

    Args:
        model, processor: the captioner.
        images: names of images; of many, so many that are evenly spaced are taken.
    """

    def __init__(
        self,
        model: FusionCaptionerForConditionalGeneration,
        processor: FusionCaptionerProcessor,
        images: Sequence[str],
    ) -> None:
        images = evenly_spaced(images, MAX_IMAGES)
        self.vocab_size = model.config.vocab_size
        self.pad_id = model.generation_config.pad_token_id
        # of a batch its language, what the image part gives, and tokens `(T, L)`
        self.batches: list[tuple[str, list[np.ndarray], np.ndarray]] = []
        for first in range(0, len(images), _BATCH):
            names = images[first : first + _BATCH]
            for language in processor.languages or [""]:
                inputs = processor(images=names, language=language or None, return_tensors="pt")
                with torch.no_grad():
                    tokens = model.generate(**inputs)
                    hidden_states = model.get_image_hidden_states(inputs["pixel_values"])
                    regions = [each.numpy() for each in model.model.project_regions(hidden_states)]
                self.batches.append((language, regions, tokens.numpy()))

    def read(self, step: Part, states: Sequence[dict[str, Any]], max_positions: int | None) -> dict[str, np.ndarray]:
        """
        Let a decoder step read all texts.

        Args:
            step, states, max_positions: as for [`DecoderStates`].

        Returns:
            language (`""` where there is one only) → the first output of the step at each token, `(tokens, D)`.
        """
        found: dict[str, list[np.ndarray]] = {}
        for language, regions, tokens in self.batches:
            reader = DecoderStates(step, states, regions, 1, max_positions, OutputLayer(self.vocab_size))
            for position in range(tokens.shape[1] - 1):
                goes_on = tokens[:, position] != self.pad_id
                if not goes_on.any():
                    break
                reader.keep(goes_on)
                tokens = tokens[goes_on]
                found.setdefault(language, []).append(reader.read(tokens[:, position]))
        return {language: np.concatenate(rows) for language, rows in found.items()}

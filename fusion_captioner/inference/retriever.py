"""A checkpoint that searches: embeddings of images and texts in one space, and scores of pairs.

B: images, T: texts, E: projection width
"""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from fusion_captioner.checkpoints.loading import load_config, load_head
from fusion_captioner.fingerprints import fingerprint, without_volatile_keys
from fusion_captioner.image_text_retrieval import FusionCaptionerForImageTextRetrieval


class Retriever:
    """
    The two towers and the matching score of a checkpoint.

    Args:
        name, revision, trust_remote_code: see `load_head`.

    Raises:
        ValueError: the checkpoint was not trained for search; and what loading raises.
    """

    def __init__(self, name: str, revision: str = "main", trust_remote_code: bool = False) -> None:
        config = load_config(name, revision)
        if not config.contrastive_loss_weight:
            raise ValueError(
                f"{name}: was not trained to search by (`contrastive_loss_weight` is "
                f"{config.contrastive_loss_weight}); give a checkpoint that was trained with a contrastive loss."
            )
        self.name = name
        self.model: Any  # its outputs are typed as if each of their fields could be missing
        self.model, self.processor = load_head(
            FusionCaptionerForImageTextRetrieval,
            name,
            revision,
            trained_to="search",
            trust_remote_code=trust_remote_code,
        )

    @property
    def image_processor(self) -> Any:
        return self.processor.image_processor

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Settings of the image processor, as JSON has them."""
        return json.loads(json.dumps(without_volatile_keys(self.image_processor.to_dict()), default=str))

    @property
    def width(self) -> int:
        """E."""
        return self.model.config.projection_dim

    @property
    def inverse_temperature(self) -> float:
        """The factor that makes cosine similarities logits."""
        return self.model.alignment.inverse_temperature.item()

    @property
    def can_match(self) -> bool:
        """Whether there is a score of fused pairs."""
        return bool(self.model.config.matching_loss_weight)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that embeddings and scores depend on: weights, config, preprocessing and tokenizer."""
        config = without_volatile_keys(self.model.config.to_dict())
        return fingerprint([config, self.preprocessing, self._tokenizer_content()], self.model.state_dict())

    def _tokenizer_content(self) -> Any:
        tokenizer = self.processor.tokenizer
        content = tokenizer.get_vocab()
        if tokenizer.is_fast:
            content = json.loads(tokenizer.backend_tokenizer.to_str())
            del content["padding"], content["truncation"]  # states of the last call
        return [content, tokenizer.model_max_length]

    @torch.inference_mode()
    def embed_images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings `(B, E)` in float32, of length 1."""
        return _array(self.model.get_image_features(self._pixel_values(pictures), return_dict=True).pooler_output)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], truncation: bool = False) -> np.ndarray:
        """Embeddings `(T, E)` in float32, of length 1.

        Args:
            truncation: truncate texts that are longer than the tokenizer's maximum, as training does with captions.

        Raises:
            ValueError: a text is too long, and `truncation` is off.
        """
        return _array(self.model.get_text_features(**self._tokens(texts, truncation), return_dict=True).pooler_output)

    @torch.inference_mode()
    def match(self, texts: Sequence[str], pictures: Sequence[Image.Image], batch_size: int = 16) -> np.ndarray:
        """Matching logits `(T, B)` of all pairs: how well each text fits each image, by the matching head."""
        tokens = self._tokens(texts, truncation=True)
        states = self.model.get_text_features(**tokens, return_dict=True).last_hidden_state
        scores = []
        for start in range(0, len(pictures), batch_size):
            regions = self.model.get_image_hidden_states(self._pixel_values(pictures[start : start + batch_size]))
            pairs = torch.cartesian_prod(torch.arange(len(texts)), torch.arange(len(regions)))
            matches = self.model.rerank(pairs, states, regions, tokens["attention_mask"])
            scores.append(_array(matches).reshape(len(texts), len(regions)))
        return np.concatenate(scores, axis=1)

    def _pixel_values(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return self.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"].to(self.model.device)

    def _tokens(self, texts: Sequence[str], truncation: bool) -> dict[str, torch.Tensor]:
        inputs = self.processor(text=list(texts), add_eos=True, truncation=truncation, return_tensors="pt")
        return {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()

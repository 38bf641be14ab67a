"""A checkpoint on torch, with the interface of an exported captioner."""

from collections.abc import Sequence
from typing import Any

import torch

from fusion_captioner.checkpoints.loading import load_captioner
from fusion_captioner.given_values import check_text
from fusion_captioner.image_loading import ImageSource
from fusion_captioner.image_processing_fusion_captioner import SETTINGS
from fusion_captioner.inference.bad_words import bad_words_ids
from fusion_captioner.inference.fused_convolutions import quicken_encoder


class TorchCaptioner:
    """
    A captioner on torch, loaded from a folder or the Hub.

    Args:
        name, revision, trust_remote_code: see `load_captioner`.
        num_threads: of torch, in the whole program; by default they stay as they are.
        dtype: of what is computed once per image; see [`quicken_encoder`].
    """

    def __init__(
        self,
        name: str,
        revision: str = "main",
        num_threads: int | None = None,
        dtype: str = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.model: Any  # GenerationMixin's types are narrower than what it takes
        self.model, self.processor = load_captioner(name, revision, trust_remote_code=trust_remote_code)
        self.model.kept_weights = {}  # nothing is trained here
        self.dtype = quicken_encoder(self.model, dtype)

    @property
    def image_settings(self) -> dict[str, Any]:
        """Settings of the image preprocessing, as in `ExportedCaptioner.image_settings`."""
        return {name: getattr(self.processor.image_processor, name) for name in SETTINGS}

    @property
    def languages(self) -> dict[str, int]:
        """Token id by language, as in `ExportedCaptioner.languages`."""
        return self.processor.language_token_ids

    @torch.inference_mode()
    def caption(
        self,
        images: Sequence[ImageSource],
        prompt: str | Sequence[str] = "",
        *,
        language: str | None = None,
        seed: int | None = None,
        bad_words: Sequence[str] = (),
        **settings: Any,
    ) -> list[list[str]]:
        """
        Captions, `num_return_sequences` of each image; arguments as in `ExportedCaptioner.caption`.

        Raises:
            ValueError: a text is not UTF-8; or `bad_words` are given, and the tokenizer is not one of the package
                tokenizers.
        """
        prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        for text in (*prompts, *bad_words):
            check_text(text, "a prompt or bad word")
        if bad_words:
            tokenizer = getattr(self.processor.tokenizer, "backend_tokenizer", None)
            if tokenizer is None:
                raise ValueError("--bad-words needs a tokenizer with a tokenizer.json; leave it out.")
            # None: there is nothing to forbid, which transformers does not take as an empty list
            before = self.processor(text="", language=language)["input_ids"][0][-1]
            settings["bad_words_ids"] = bad_words_ids(tokenizer, bad_words, before) or None
        if seed is not None:
            torch.manual_seed(seed)
        inputs = self.processor(images=list(images), text=prompts, language=language, return_tensors="pt")
        generated = self.model.generate(**inputs.to(self.model.device), **settings)[:, inputs["input_ids"].shape[1] :]
        texts = [text.strip() for text in self.processor.batch_decode(generated, skip_special_tokens=True)]
        per_image = len(texts) // len(images)
        return [texts[start : start + per_image] for start in range(0, len(texts), per_image)]

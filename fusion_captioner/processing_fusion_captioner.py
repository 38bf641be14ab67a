"""Processor of Fusion Captioner: images and text to model inputs, and tokens back to text."""

from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

# A conversation without text is a plain request for a caption: its prompt is empty.
CHAT_TEMPLATE = """{%- set parts = namespace(all=[]) -%}
{%- for message in messages -%}
{%- set speaker = 'answer: ' if message['role'] == 'assistant' else 'question: ' -%}
{%- if message['content'] is string -%}
{%- set parts.all = parts.all + [speaker + message['content']] -%}
{%- else -%}
{%- for item in message['content'] if item['type'] == 'text' and item['text'] -%}
{%- set parts.all = parts.all + [speaker + item['text']] -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{{- parts.all | join(' ') -}}
{%- if parts.all and add_generation_prompt -%}{{ ' answer:' }}{%- endif -%}"""


class FusionCaptionerProcessor(ProcessorMixin):
    r"""
    An image processor and a fast tokenizer as one.

    Args:
        image_processor (`FusionCaptionerImageProcessor`).
        tokenizer: any fast tokenizer with a token for padding, one for the beginning (BOS or CLS) and one for the
            end (EOS or SEP). The processor places them itself.
        chat_template (`str`, *optional*).

    Raises:
        ValueError: if the tokenizer lacks one of the three.
    """

    _auto_class = "AutoProcessor"

    def __init__(self, image_processor, tokenizer, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.bos_token_id = _first_id("BOS or CLS", tokenizer.bos_token_id, tokenizer.cls_token_id)
        self.eos_token_id = _first_id("EOS or SEP", tokenizer.eos_token_id, tokenizer.sep_token_id)
        self.pad_token_id = _first_id("padding", tokenizer.pad_token_id)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            output.pop(name, None)
        return output

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        text_target: str | list[str] | None = None,
        add_eos: bool = False,
        max_length: int | None = None,
        padding: bool = True,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        videos: None = None,
        audio: None = None,
        audio_from_video_indices: list | None = None,
        load_audio_from_video: bool = False,
        **images_kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: see `FusionCaptionerImageProcessor`; a list of lists is a batch of videos.
            text: prompts, one a row; with images and without `text_target`, an empty prompt is a lone BOS.
            text_target: captions to learn. Rows are then BOS, prompt, caption, EOS, padded on the right, with
                `labels` of -100 on all but caption and EOS. A caption too long loses its end, never its EOS.
            add_eos: whether EOS ends `text`, as the text embeddings expect it; rows are then padded on the right.
            max_length: longest row in tokens; by default the tokenizer's `model_max_length`.
            padding: whether rows of unequal length are made equal, prompts on the left.
            return_tensors: `"pt"`, `"np"` or none.
            add_special_tokens: whether BOS begins each row.
            images_kwargs: for the image processor.

        Returns:
            `pixel_values` where images are given; `input_ids` and `attention_mask` where there is text; `labels`
            where there is `text_target`.

        Raises:
            ValueError: without any input, for a prompt longer than `max_length`, or unequal numbers of texts.
        """
        if images is None and text is None and text_target is None:
            raise ValueError("the processor got neither `images` nor `text`; give at least one of them.")
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(_single_frames(images), return_tensors="np", **images_kwargs))
        if text is not None or text_target is not None:
            data.update(self._encode(text, text_target, add_eos, max_length, padding, add_special_tokens))
        return BatchFeature(data, tensor_type=return_tensors)

    def _encode(self, text, text_target, add_eos, max_length, padding, add_special_tokens) -> dict[str, Any]:
        prompts = [text] if isinstance(text, str) else text
        targets = [text_target] if isinstance(text_target, str) else text_target
        if prompts is None:
            prompts = [""] * len(targets)
        if targets is not None and len(prompts) != len(targets):
            raise ValueError(f"{len(prompts)} prompts in `text` and {len(targets)} captions in `text_target` differ.")
        if not prompts:
            raise ValueError("`text` is empty; give at least one text, which may be the empty string.")
        longest = max_length or self.tokenizer.model_max_length
        beginning = [self.bos_token_id] if add_special_tokens else []
        ending = [self.eos_token_id] if add_eos or targets is not None else []
        rows = [beginning + ids for ids in self._token_ids(prompts)]
        for prompt, row in zip(prompts, rows):
            if len(row) + len(ending) > longest:
                raise ValueError(
                    f"a text of {len(row) + len(ending)} tokens ({prompt[:40]!r}...) is longer than `max_length` "
                    f"({longest}); shorten it."
                )
        labels: list[list[int]] = []
        if targets is not None:
            for index, target in enumerate(self._token_ids(targets)):
                prompt_length = len(rows[index])
                caption = target[: longest - prompt_length - 1] + ending
                rows[index] = rows[index] + caption
                labels.append([-100] * prompt_length + caption)
        elif add_eos:
            rows = [row + ending for row in rows]
        masks = [[1] * len(row) for row in rows]
        if padding:
            left = targets is None and not add_eos
            width = max(map(len, rows))
            rows = [_pad(row, width, self.pad_token_id, left) for row in rows]
            masks = [_pad(mask, width, 0, left) for mask in masks]
            labels = [_pad(label, width, -100, left) for label in labels]
        return {"input_ids": rows, "attention_mask": masks} | ({"labels": labels} if targets is not None else {})

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise ValueError(f"a text is of type {type(wrong).__name__} ({wrong!r}); give strings.")
        # too long rows are dealt with above; the tokenizer's own warning would only repeat it
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]

    def post_process_image_text_to_text(
        self, generated_outputs: torch.Tensor, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Generated tokens `(B, L)` as text."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)


def _first_id(what: str, *token_ids: int | None) -> int:
    for token_id in token_ids:
        if token_id is not None:
            return token_id
    raise ValueError(f"the tokenizer has no {what} token; add one, as with `tokenizer.add_special_tokens`.")


def _pad(row: list[int], width: int, value: int, left: bool) -> list[int]:
    padding = [value] * (width - len(row))
    return padding + row if left else row + padding


def _single_frames(images: Any) -> Any:
    """Chats carry a list of images a conversation: lists of one are pictures, not videos of one frame."""
    if (
        isinstance(images, list | tuple)
        and images
        and all(isinstance(i, list | tuple) and len(i) == 1 for i in images)
    ):
        return [image[0] for image in images]
    return images


__all__ = ["FusionCaptionerProcessor"]

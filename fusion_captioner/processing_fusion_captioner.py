"""Images and text to model inputs, and tokens back to text.

Legend: B: images, k: texts per image, L: tokens, F: frames of a video, N: choices, H, W: height and width in pixels.
"""

import re
from functools import cached_property
from inspect import signature
from typing import Any

from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin, TextKwargs

from .image_processing_fusion_captioner import FusionCaptionerImageProcessor
from .text_rows import (
    count_choices,
    fit_prompt,
    padded,
    padded_width,
    prompts_and_captions,
    repeat_questions,
    too_long,
    with_missing_choices,
)

# Plain words, since a captioner's tokenizer has no tokens for turns: "question: what is it? answer: a dog question:
# ... answer:". What is said without a question before it, by system or assistant, stands alone, and a chat that holds
# images and no text is the empty prompt, which asks for a caption.
CHAT_TEMPLATE = """\
{%- set chat = namespace(begun=false, asked=false) -%}
{%- for message in messages -%}
{%- set content = message['content'] or '' -%}
{%- if content is not string -%}
{%- set content = content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') -%}
{%- endif -%}
{%- if content | trim -%}
{%- if message['role'] not in ('system', 'user', 'assistant') -%}
{{- raise_exception("the role of a message is '" ~ message['role'] ~ "'; it must be system, user or assistant") -}}
{%- endif -%}
{{- ' ' if chat.begun else '' -}}
{%- if message['role'] == 'assistant' -%}
{{- 'answer: ' if chat.asked else '' -}}
{%- generation -%}{{- content -}}{%- endgeneration -%}
{%- else -%}
{{- ('question: ' if message['role'] == 'user' else '') ~ content -}}
{%- endif -%}
{%- set chat.begun = true -%}
{%- set chat.asked = message['role'] == 'user' -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and chat.asked -%}{{- ' answer:' -}}{%- endif -%}
"""

LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")

IGNORED = -100  # what `labels` hold where nothing is learned
# Tokenizers without a maximum say 10^30
NO_LIMIT = 10**9
# What transformers passes to any processor and changes nothing here, and what other processors know: that may be unset
WITHOUT_EFFECT = {"return_text_replacement_offsets", "verbose"}
OTHER_SETTINGS = {*TextKwargs.__annotations__, *ImagesKwargs.__annotations__, *ProcessingKwargs.__annotations__}


def language_token(language: str) -> str:
    """
    The special token that texts in a language begin with.

    Raises:
        ValueError: `language` is no code such as `"en"` or `"pt-br"`.
    """
    if not isinstance(language, str) or not LANGUAGE.fullmatch(language):
        raise ValueError(f"the language {language!r} must be a code in lower case, such as 'en' or 'pt-br'.")
    return f"<|{language}|>"


class FusionCaptionerProcessor(ProcessorMixin):
    """An image processor and a tokenizer in one.

    The processor places the special tokens itself, whatever the tokenizer would do: a prompt is `[BOS] prompt`, a row
    to learn from is `[BOS] prompt caption [EOS]`, a choice is `[BOS] question choice [EOS]`. BOS is the tokenizer's
    `bos_token` or, like BERT's, `cls_token`, or, where there is neither, `eos_token`; EOS is its `eos_token` or
    `sep_token`. With several languages the token of one of them, such as `<|zh|>`, follows each BOS.

    Args:
        image_processor: such as [`FusionCaptionerImageProcessor`].
        tokenizer: any tokenizer with a padding token and one of `eos_token` and `sep_token`.
        chat_template: Jinja template for chats; by default `CHAT_TEMPLATE`.
        languages: codes of the languages, such as `["en", "zh"]`, of a captioner of several; the first is the default.

    Raises:
        ValueError: the tokenizer lacks a token.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        languages: list[str] | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        if isinstance(image_processor, FusionCaptionerImageProcessor):
            image_processor.belong_to(self)
        if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
            raise ValueError(
                "`tokenizer` has neither `eos_token` nor `sep_token` to end a caption with; add one by "
                "`tokenizer.add_special_tokens({'eos_token': '<eos>'})`."
            )
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "`tokenizer` has no `pad_token`; set one, for example by `tokenizer.pad_token = tokenizer.eos_token` "
                "(padding is masked, so that the two are never confused)."
            )
        self.languages = list(languages or [])
        vocabulary = tokenizer.get_vocab() if self.languages else {}
        if lacking := [token for token in map(language_token, self.languages) if token not in vocabulary]:
            raise ValueError(
                f"`tokenizer` has no {', '.join(lacking)} for `languages` ({', '.join(self.languages)}); add them by "
                f"`tokenizer.add_special_tokens({{'extra_special_tokens': {lacking}}})`."
            )

    @property
    def bos_token_id(self) -> int:
        """The token that every row begins with."""
        candidates = (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id, self.eos_token_id)
        return next(token_id for token_id in candidates if token_id is not None)

    @property
    def eos_token_id(self) -> int:
        """The token that ends a caption."""
        eos, sep = self.tokenizer.eos_token_id, self.tokenizer.sep_token_id
        return sep if eos is None else eos

    @property
    def language_token_ids(self) -> dict[str, int]:
        """Token id by language; empty for a captioner of one language."""
        ids = self.tokenizer.convert_tokens_to_ids([language_token(each) for each in self.languages])
        return dict(zip(self.languages, ids))

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        text_target: str | list[str] | list[list[str]] | None = None,
        *,
        choices: list[list[str]] | None = None,
        language: str | list[str] | None = None,
        add_eos: bool = False,
        text_kwargs: dict[str, Any] | None = None,
        images_kwargs: dict[str, Any] | None = None,
        common_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares prompts to continue (`text`), or captions to learn (`text_target`), with or without their images.

        Args:
            images: one or many images or videos of any kind; see [`FusionCaptionerImageProcessor.preprocess`].
            text: a prompt, or one for every row. With B images, B*k prompts put k rows to an image, those of one image
                standing together; a single string serves every image. "" is a lone BOS.
            text_target: captions: one, one for every row, or a list of k for every image. `text` then holds the prompt
                before each: none, one string, one an image or one a row.
            choices: for each question the answers to choose from, for [`FusionCaptionerForMultipleChoice`]; `text`
                then holds the questions: none, one string for all, or one each. Where a question has fewer choices
                than another, rows of padding take their place.
            language: of a captioner of several languages: that of the texts, or one for every row of them; by default
                the first of `languages`. With `images` alone, it stands for the empty prompt in that language.
            add_eos: ends `text` with EOS, as the text embeddings of retrieval want it, and pads it on the right.
            padding: True or `"longest"`, `"max_length"`, or False for rows of different lengths (lists only).
            truncation: by default, captions that are too long lose their end, never their EOS, and prompts that are
                too long are refused. True also cuts the end of `text` that stands without `text_target`; False refuses
                captions that are too long as well.
            max_length: tokens of a row at most, special tokens included; by default the tokenizer's
                `model_max_length`.
            pad_to_multiple_of: rounds the padded length up.
            return_tensors: `"pt"`, `"np"`, or None for lists of tokens.
            add_special_tokens: False leaves BOS out, for a `text` that brings its own.
            sanitize_control_tokens: set by `apply_chat_template`, which explains it.
            videos, audio: not supported: frames are given as `images`.
            return_attention_mask: False leaves `attention_mask` out.
            padding_side: `"left"` or `"right"`; by default left for prompts, and right for everything else.
            return_offsets_mapping: adds `offset_mapping`: where in its text, first to behind the last character, each
                token stands; (0, 0) for special tokens.
            text_kwargs, images_kwargs, common_kwargs: the settings above, those of the image processor for this call,
                such as `size`, and `return_tensors`; they may as well stand in `kwargs`, each in one place.

        Returns:
            those that apply of
            - `pixel_values`: float32 (B, 3, H, W), for videos (B, F, 3, H, W);
            - `input_ids`, `attention_mask`: (B*k, L), prompts padded on the left, everything else on the right; with
              `choices` (B, N, L);
            - `labels`, with `text_target`: `input_ids`, but -100 on BOS, prompt and padding.

        Raises:
            ValueError: nothing to prepare; numbers of images, prompts and captions that do not fit each other; a text
                too long; an argument that is unknown or does not fit. And what reading images raises.
        """
        for name in ("videos", "audio"):  # transformers passes them, mostly unset
            if kwargs.pop(name, None) is not None:
                raise ValueError(
                    f"`{name}` cannot be processed; give the frames of a video as a list within `images`."
                )
        if images is None and text is None and text_target is None and choices is None:
            raise ValueError("nothing to process; give `images`, `text`, `text_target` or `choices`.")
        if choices is not None and text_target is not None:
            raise ValueError("`choices` and `text_target` are for different heads; give one of them.")
        if add_eos and (text is None or text_target is not None or choices is not None):
            raise ValueError("`add_eos` (True) is for `text` alone; captions in `text_target` end in EOS anyway.")
        if language is not None and text is None and text_target is None and choices is None:
            text = ""
        settings = self._settings(kwargs, common_kwargs, text_kwargs, images_kwargs)
        image_settings = {name: settings.pop(name) for name in self._image_settings & settings.keys()}
        return self._prepare(images, text, text_target, choices, language, add_eos, image_settings, **settings)

    @property
    def _image_settings(self) -> set[str]:
        return {*self.image_processor.valid_kwargs.__annotations__, "input_data_format"}

    def _settings(self, *groups: dict[str, Any] | None) -> dict[str, Any]:
        """All settings of a call, whichever group they stand in."""
        settings: dict[str, Any] = {}
        known = self._image_settings | set(signature(self._prepare).parameters)
        for group in groups:
            for name, value in (group or {}).items():
                if name in settings:
                    raise ValueError(f"`{name}` is given twice; leave it out of the call or of the group of settings.")
                if name in known:
                    settings[name] = value
                elif name not in WITHOUT_EFFECT and (name not in OTHER_SETTINGS or value):
                    raise ValueError(f"`{name}` is no argument of this processor or of its image processor.")
        return settings

    def _prepare(
        self,
        images: Any,
        text: str | list[str] | None,
        text_target: str | list[str] | list[list[str]] | None,
        choices: list[list[str]] | None,
        language: str | list[str] | None,
        add_eos: bool,
        image_settings: dict[str, Any],
        *,
        padding: bool | str = True,
        padding_side: str | None = None,
        truncation: bool | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        return_offsets_mapping: bool = False,
        add_special_tokens: bool = True,
        sanitize_control_tokens: bool = False,
    ) -> BatchFeature:
        """What `__call__` returns for settings that are known."""
        if padding_side not in (None, "left", "right"):
            raise ValueError(f"`padding_side` ({padding_side!r}) must be 'left' or 'right'.")
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, return_tensors=return_tensors or "np", **image_settings))
        num_images = len(data["pixel_values"]) if images is not None else None
        if text is not None or text_target is not None or choices is not None:
            counts: list[int] = []
            if choices is not None:
                counts = count_choices(num_images, choices)
                text = repeat_questions(text, counts)
                text_target = [choice for answers in choices for choice in answers]
                num_images = None  # an image of its own for each question, not for each choice
            prompts, captions = prompts_and_captions(num_images, text, text_target)
            limit = self._limit(max_length)
            encode = {"sanitize_control_tokens": True} if sanitize_control_tokens else {}
            starts = self._starts(len(prompts), language, add_special_tokens)
            rows = [start + ids for start, ids in zip(starts, self._token_ids(prompts, **encode))]
            if captions is None:
                end = [self.eos_token_id] if add_eos else []
                rows = [fit_prompt(row, end, prompts[i], limit, truncation) for i, row in enumerate(rows)]
                labels = None
            else:
                rows, labels = self._learnable_rows(rows, prompts, captions, limit, truncation)
            width = padded_width(rows, padding, limit, pad_to_multiple_of)
            if choices is not None:
                rows, labels = with_missing_choices(rows, counts), None
            on_the_left = captions is None and not add_eos if padding_side is None else padding_side == "left"
            data["input_ids"] = padded(rows, width, self.tokenizer.pad_token_id, on_the_left)
            if return_attention_mask:
                data["attention_mask"] = padded([[1] * len(row) for row in rows], width, 0, on_the_left)
            if labels is not None:
                data["labels"] = padded(labels, width, IGNORED, on_the_left)
            if return_offsets_mapping:
                if captions is not None:
                    raise ValueError("`return_offsets_mapping` (True) is for `text` alone; leave it out.")
                data["offset_mapping"] = padded(
                    self._offsets(prompts, rows, len(starts[0])), width, (0, 0), on_the_left
                )
            if choices is not None:
                for name in {"input_ids", "attention_mask"} & data.keys():
                    data[name] = [data[name][i : i + max(counts)] for i in range(0, len(rows), max(counts))]
        return BatchFeature(data, tensor_type=return_tensors)

    def _starts(self, rows: int, language: str | list[str] | None, add_special_tokens: bool) -> list[list[int]]:
        """The special tokens that each row begins with: BOS, and the token of its language, if there are languages."""
        known = self.language_token_ids
        if language is not None and (not known or not add_special_tokens):
            why = "`add_special_tokens` is False" if known else "this captioner has one language"
            raise ValueError(f"`language` ({language!r}) has no meaning, since {why}; leave it out.")
        if not add_special_tokens:
            return [[]] * rows
        if not known:
            return [[self.bos_token_id]] * rows
        if language is None:
            language = next(iter(known))
        wanted = list(language) if isinstance(language, list | tuple) else [language] * rows
        if len(wanted) != rows:
            raise ValueError(f"`language` holds {len(wanted)} languages for {rows} texts; give one for each, or one.")
        for each in wanted:
            if not isinstance(each, str) or each not in known:
                raise ValueError(f"`language` ({each!r}) must be one of {', '.join(map(repr, known))}.")
        return [[self.bos_token_id, known[each]] for each in wanted]

    def _limit(self, max_length: int | None) -> int | None:
        if max_length is None:
            return self.tokenizer.model_max_length if self.tokenizer.model_max_length < NO_LIMIT else None
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
            raise ValueError(f"`max_length` ({max_length!r}) must be a number of tokens, at least 1.")
        return max_length

    def _learnable_rows(
        self,
        rows: list[list[int]],
        prompts: list[str],
        captions: list[str],
        limit: int | None,
        truncation: bool | None,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """`[BOS] prompt` rows with caption and EOS behind, and the labels of each."""
        if self._joins_without_space:
            captions = [f" {caption}" if prompt else caption for prompt, caption in zip(prompts, captions)]
        learnable, labels = [], []
        for index, (row, ids) in enumerate(zip(rows, self._token_ids(captions))):
            room = len(ids) if limit is None else limit - len(row) - 1
            if room < min(len(ids), 1):
                raise ValueError(too_long(prompts[index], len(row), limit, "leaves no room for its caption within"))
            if truncation is False and len(ids) > room:
                raise ValueError(too_long(captions[index], len(row) + len(ids) + 1, limit, "makes a row longer than"))
            caption = [*ids[:room], self.eos_token_id]
            learnable.append(row + caption)
            labels.append([IGNORED] * len(row) + caption)
        return learnable, labels

    def _token_ids(self, texts: list[str], **kwargs: Any) -> list[list[int]]:
        # `verbose=False`: it would warn of length, which is dealt with here
        return self.tokenizer(
            texts, add_special_tokens=False, padding=False, truncation=False, verbose=False, **kwargs
        )["input_ids"]

    def _offsets(self, prompts: list[str], rows: list[list[int]], first: int) -> list[list[tuple[int, int]]]:
        """Where in its prompt each token of a row stands; `first` is the number of special tokens before the
        prompt."""
        encoded = self.tokenizer(prompts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = []
        for row, spans in zip(rows, encoded["offset_mapping"]):
            spans = [(0, 0)] * first + [tuple(span) for span in spans]
            offsets.append((spans + [(0, 0)] * len(row))[: len(row)])
        return offsets

    @cached_property
    def _joins_without_space(self) -> bool:
        """Whether two texts, each tokenised alone, decode as one word: so in GPT-2, whose tokens bring their
        spaces."""
        letter = self._token_ids(["a"])[0]
        return self.tokenizer.decode(letter + letter).strip().lower() == "aa"


FusionCaptionerProcessor.register_for_auto_class()  # so that saving ships this file as remote code

__all__ = ["FusionCaptionerProcessor", "language_token"]

"""OpenAI's chat completions with images: what a request holds, and the forms of the answers.

Reference: https://platform.openai.com/docs/api-reference/chat
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fusion_captioner.given_values import check_text

# Parameters that have no effect on the text; and those that would have one, with the values that ask for nothing.
WITHOUT_EFFECT = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "prediction",
}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"  # the captioner's size is always the same


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @property
    def parts(self) -> Sequence[TextPart | ImagePart]:
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request for a chat completion. Parameters that the captioner cannot follow are refused, not ignored."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_texts(cls, document: Any) -> Any:
        """No text anywhere in the request has a lone surrogate, which neither tokenizers nor answers can hold."""
        values = [document]
        while values:
            value = values.pop()
            if isinstance(value, str):
                check_text(value, "a text of the request")
            elif isinstance(value, Mapping):
                values += [*value, *value.values()]
            elif isinstance(value, list):
                values += value
        return document

    @model_validator(mode="after")
    def _check_others(self) -> "ChatRequest":
        for name, value in (self.model_extra or {}).items():
            if value is not None and name not in WITHOUT_EFFECT and value not in NEUTRAL.get(name, ()):
                raise ValueError(f"`{name}` ({str(value)[:40]}) is not supported by this captioner; leave it out")
        return self

    @property
    def image_urls(self) -> list[str]:
        return [part.image_url.url for each in self.messages for part in each.parts if isinstance(part, ImagePart)]

    @property
    def texts(self) -> list[dict[str, str]]:
        """The messages without images, as chat templates take them."""
        return [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": " ".join(part.text for part in message.parts if isinstance(part, TextPart)),
            }
            for message in self.messages
        ]

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class ChatAnswer:
    """
    The forms of an answer.

    Args:
        model: name of the captioner.
        prompt_tokens: of the text; the image is not counted.
    """

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, texts: Sequence[str], tokens: Sequence[int], limit: int) -> dict[str, Any]:
        """
        Args:
            texts: that were generated, one per choice.
            tokens: how many each text has.
            limit: tokens at which a text is cut off.
        """
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": _finish_reason(count, limit),
            }
            for index, (text, count) in enumerate(zip(texts, tokens, strict=True))
        ]
        return self._head("chat.completion") | {"choices": choices, "usage": self._usage(tokens)}

    def first_event(self, number: int) -> str:
        """The event that begins a stream, which comes before the texts are known."""
        return self._chunk([(index, {"role": "assistant", "content": ""}, None) for index in range(number)])

    def events(self, texts: Sequence[str], tokens: Sequence[int], limit: int, include_usage: bool) -> Iterator[str]:
        """The other events: each text word by word, its end, and how many tokens there were. Arguments as above."""
        for index, (text, count) in enumerate(zip(texts, tokens, strict=True)):
            for number, word in enumerate(text.split(" ")):
                yield self._chunk([(index, {"content": f" {word}" if number else word}, None)])
            yield self._chunk([(index, {}, _finish_reason(count, limit))])
        if include_usage:
            yield _event(self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage(tokens)})
        yield "data: [DONE]\n\n"

    def _chunk(self, deltas: Sequence[tuple[int, dict[str, str], str | None]]) -> str:
        choices = [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
            for index, delta, reason in deltas
        ]
        return _event(self._head("chat.completion.chunk") | {"choices": choices})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self, tokens: Sequence[int]) -> dict[str, int]:
        written = sum(tokens)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }


def error_event(body: dict[str, Any]) -> str:
    """The event of an error in a stream that has begun."""
    return _event(body)


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _finish_reason(tokens: int, limit: int) -> str:
    return "length" if tokens >= limit else "stop"

"""The captioner of a server, with what a server must know of it: its name, whether it takes prompts, its tokens."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.checkpoints.saved_task import saved_task
from fusion_captioner.files import expanded
from fusion_captioner.given_values import MIN_TEMPERATURE
from fusion_captioner.inference.captioner import Captioner, load_on_runtime

DEFAULT_NAME = "fusion-captioner"


class ServedCaptioner:
    """
    A captioner that several threads may call: one batch runs at a time.

    Args:
        captioner: on any runtime.
        name: what clients call it.
        takes_prompts: whether it was trained with questions or other prompts.
        beams, max_new_tokens: how captions are generated where a request does not say.
        language: of all captions, for a captioner of several languages; by default its first.
    """

    def __init__(
        self,
        captioner: Captioner,
        name: str,
        takes_prompts: bool,
        beams: int = 3,
        max_new_tokens: int = 30,
        language: str | None = None,
    ) -> None:
        self.captioner = captioner
        self.name = name
        self.takes_prompts = takes_prompts
        self.beams = beams
        self.max_new_tokens = max_new_tokens
        self.language = language
        self._lock = threading.Lock()

    @property
    def image_settings(self) -> Mapping[str, Any]:
        return self.captioner.image_settings

    def settings(
        self,
        number: int = 1,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> dict[str, Any]:
        """
        Settings of generation. By default they are those of `fusion-captioner caption`.

        Args:
            number: texts per image.
            max_new_tokens: a lower limit than the captioner's.
            temperature, top_p: draw tokens at random; a temperature of 0, or neither of the two, is beam search.
        """
        settings: dict[str, Any] = {
            "max_new_tokens": min(max_new_tokens or self.max_new_tokens, self.max_new_tokens),
            "num_return_sequences": number,
            "num_beams": max(self.beams, number),
        }
        if temperature or (temperature is None and top_p is not None):
            temperature = max(temperature or 1.0, MIN_TEMPERATURE)
            settings |= {"do_sample": True, "num_beams": 1, "temperature": temperature, "top_p": top_p or 1.0}
        if settings["num_beams"] == 1:
            settings["length_penalty"] = 1.0  # the captioner's own is one of beam search
        return settings

    def caption(
        self,
        pictures: list[Image.Image],
        prompts: Sequence[str],
        settings: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> list[list[str]]:
        """Texts of each picture; `settings` are what the method of that name returns."""
        with self._lock:
            return self.captioner.caption(
                pictures, prompts, language=self.language, seed=seed, **(settings or self.settings())
            )

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a chat, by the chat template; `""` where the captioner takes no prompts."""
        if not self.takes_prompts:
            return ""
        processor = getattr(self.captioner, "processor", None)
        if processor is not None:
            return processor.apply_chat_template(list(messages), add_generation_prompt=True)
        return plain_chat_prompt(messages)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        processor = getattr(self.captioner, "processor", None)
        if processor is not None:
            return len(processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        tokenizer: Any = self.captioner.tokenizer  # type: ignore[attr-defined]
        return len(tokenizer.encode(text, add_special_tokens=False).ids)


def plain_chat_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """The default chat template of the processor, for exports, which have no processor."""
    parts, asked = [], False
    for message in messages:
        content = message["content"]
        if not content.strip():
            continue
        if message["role"] == "assistant":
            parts.append(f"answer: {content}" if asked else content)
        else:
            parts.append(f"question: {content}" if message["role"] == "user" else content)
        asked = message["role"] == "user"
    return " ".join([*parts, "answer:"] if asked else parts)


def load_served_captioner(
    model: str,
    *,
    name: str | None = None,
    takes_prompts: bool | None = None,
    beams: int = 3,
    max_new_tokens: int = 30,
    language: str | None = None,
    revision: str = "main",
    runtime: str | None = None,
    trust_remote_code: bool = False,
) -> ServedCaptioner:
    """
    Load a captioner to be served.

    Args:
        model, revision, runtime, trust_remote_code: see `load_on_runtime`, which also says what is raised.
        name: by default the last part of `model`.
        takes_prompts: by default, whether `task.json` next to the model says that it was trained with prompts.
        beams, max_new_tokens, language: see [`ServedCaptioner`].

    Raises:
        ValueError: the captioner does not know the language, or its `task.json` is damaged.
    """
    captioner = load_on_runtime(model, revision, runtime, trust_remote_code=trust_remote_code)
    if language is not None and language not in captioner.languages:
        names = ", ".join(captioner.languages) or "none, since it has one language"
        raise ValueError(f"--language ({language!r}) is none of the captioner's: {names}.")
    if name is None:
        name = DEFAULT_NAME if model == DEFAULT_CHECKPOINT else expanded(model).absolute().name
        name = name.encode("utf-8", "replace").decode()  # answers in JSON have it
    if takes_prompts is None:
        takes_prompts = saved_task(model, revision) == "prompted"
    return ServedCaptioner(captioner, name, takes_prompts, beams, max_new_tokens, language)

"""
An exported captioner: images in, captions out, with NumPy, Pillow, tokenizers and a runtime, and never torch.

B: images, k: prompts per image, T = B*k: texts, L: tokens, H, W: height and width in pixels
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from fusion_captioner.files import expanded
from fusion_captioner.fingerprints import digest_problem
from fusion_captioner.given_values import check_text
from fusion_captioner.image_loading import ImageSource, check_processed_size, images_to_pixel_values
from fusion_captioner.inference.decoder_states import DecoderStates
from fusion_captioner.inference.launched_process import usable_cores
from fusion_captioner.inference.output_layer import OutputLayer
from fusion_captioner.inference.runtimes import RUNTIMES, RUNTIMES_OF_PARTS, Part, reading_export
from fusion_captioner.inference.token_search import SearchSettings, filler, search_one_by_one, search_with_beams

DESCRIPTION = "exported_captioner.json"
# Names of the sizes that change from call to call, in the shapes of a description.
IMAGES, TEXTS, PAST = "images", "texts", "past"
# Numbers that a state holds per text: 2**24 are 64 MiB.
MAX_STATE_SIZE = 2**24
IMAGE_SETTINGS = "preprocessor_config.json"
IMAGE_PART, DECODER_STEP, OUTPUT_LAYER = "image_part", "decoder_step", "output_layer"
FORMAT = 2


class ExportedCaptioner:
    """
    A captioner that `fusion-captioner export` wrote.

    Args:
        folder: the folder of the export.
        num_threads: of the runtime, and that read images; by default as many as there are cores.

    Raises:
        FileNotFoundError: the folder is no export.
        ValueError: a file differs from its digest, or the export is of another format than this version reads.
        ImportError: the runtime's package is not installed.

    Example:

        >>> captioner = ExportedCaptioner("runs/captioner-openvino")
        >>> captioner.caption(["photo.jpg"], num_beams=3)
        [['a brown dog runs through the snow']]
    """

    def __init__(self, folder: str | Path, num_threads: int | None = None) -> None:
        folder = expanded(folder)
        self.num_threads = num_threads or usable_cores()
        self.description = read_description(folder)
        if problem := digest_problem(folder):
            raise ValueError(f"{folder / problem}; export the captioner again.")
        self.image_settings = _read_image_settings(folder / IMAGE_SETTINGS)
        with reading_export(folder / "tokenizer.json"):
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.tokenizer.no_padding()
            self.tokenizer.no_truncation()
        self.runtime: str = self.description["runtime"]
        of_images, of_steps = (RUNTIMES[name] for name in RUNTIMES_OF_PARTS[self.runtime])
        # To wake ONNX Runtime's threads takes as long as most operators of a step do. So a step has one thread, and
        # the images of a batch are shared among searches that run side by side.
        on_one_thread = RUNTIMES_OF_PARTS[self.runtime][1] == "onnx"
        self._searches = self.num_threads if on_one_thread else 1
        step_threads = 1 if on_one_thread else num_threads
        # concepts, where they add to the scores of words, come behind the regions
        regions = len(self.description["regions"]) + bool(self.description["concepts"])
        states = len(self.description["states"])

        # What searches do in Python is done by one at a time, while parts run for the others: else they would take
        # Python's own lock from each other at every array, and wait longer than they compute.
        self._turn = Lock()

        def of_a_step(name: str, outputs: int) -> Part:
            return _checked(of_steps(folder, name, step_threads), folder / name, outputs)

        self._image_part = _checked(of_images(folder, IMAGE_PART, num_threads), folder / IMAGE_PART, regions)
        self._decoder_step = of_a_step(DECODER_STEP, 1 + states)
        self._load_output_layer = lambda language: of_a_step(output_layer_name(language), 1)
        self._output_layers: dict[str, OutputLayer] = {}

    @property
    def image_size(self) -> tuple[int, int]:
        """`(H, W)` that images are resized to."""
        return self.image_settings["size"]["height"], self.image_settings["size"]["width"]

    def preprocess(self, images: Sequence[ImageSource]) -> np.ndarray:
        """Images of any kind to float32 `(B, 3, H, W)`, as [`FusionCaptionerImageProcessor`] makes them."""
        if isinstance(images, str | bytes | Path) or not images:
            raise ValueError(f"`images` ({images!r:.60}) must be a list of at least one image.")
        return images_to_pixel_values(images, self.image_settings, threads=self.num_threads)

    @property
    def languages(self) -> dict[str, int]:
        """Token id by language, the default first; empty for a captioner of one language."""
        return dict(self.description["tokenizer"]["languages"])

    def beginning(self, language: str | None = None) -> list[int]:
        """
        The tokens that every text begins with: BOS and, if the captioner has several languages, the language's token.

        Raises:
            ValueError: the captioner does not know the language.
        """
        bos_id, known = self.description["tokenizer"]["bos_token_id"], self.languages
        if language is not None and (not isinstance(language, str) or language not in known):
            names = ", ".join(map(repr, known)) or "none: this captioner has one language"
            raise ValueError(f"`language` ({language!r}) must be one of {names}.")
        return [bos_id, known[next(iter(known)) if language is None else language]] if known else [bos_id]

    def encode(self, prompts: Sequence[str], language: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """
        Prompts to tokens behind BOS, padded on the left, as [`FusionCaptionerProcessor`] makes them.

        Args:
            prompts: T texts.
            language: of the texts, by default the first of `languages`.

        Returns:
            `input_ids` and `attention_mask`, int64 (T, L).

        Raises:
            ValueError: if a prompt is not UTF-8, or longer than the tokenizer allows, or the language is not known.
        """
        for prompt in prompts:
            check_text(prompt, "the prompt")
        special, limit = self.description["tokenizer"], self.description["tokenizer"]["model_max_length"]
        encodings = self.tokenizer.encode_batch(list(prompts), add_special_tokens=False)
        beginning = self.beginning(language)
        rows = [[*beginning, *encoding.ids] for encoding in encodings]
        longest = max(map(len, rows))
        if limit is not None and longest > limit:
            raise ValueError(f"a prompt of {longest} tokens is longer than the maximum of {limit}; shorten it.")
        input_ids = np.full((len(rows), longest), special["pad_token_id"], np.int64)
        mask = np.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, longest - len(row) :] = row
            mask[index, longest - len(row) :] = 1
        return input_ids, mask

    def decode(self, token_ids: np.ndarray) -> list[str]:
        """Tokens `(T, L)` to texts, without special tokens."""
        texts = self.tokenizer.decode_batch(token_ids.tolist(), skip_special_tokens=True)
        if self.description["tokenizer"]["clean_up_tokenization_spaces"]:
            texts = [_clean_up_spaces(text) for text in texts]
        return [text.strip() for text in texts]

    def generate(
        self,
        pixel_values: np.ndarray,
        input_ids: np.ndarray | None = None,
        attention_mask: np.ndarray | None = None,
        *,
        seed: int | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """
        Generate tokens as `generate` of transformers does for the same arguments.

        Args:
            pixel_values: float32 (B, 3, H, W).
            input_ids: int64 (T, L), prompts padded on the left, the k of an image next to each other; by default
                `beginning()` for each image.
            attention_mask: int64 (T, L), 0 at padding; by default no padding.
            seed: of `do_sample`.
            settings: see [`SearchSettings`].

        Returns:
            int64 (T*num_return_sequences, L + new tokens): prompts and what follows them.

        Raises:
            ValueError: a setting out of range, prompts that do not divide among the images, or a text too long for
                Transformer layers.
            TypeError: a setting that does not exist.
        """
        search = SearchSettings(**(self.description["generation"]["settings"] | settings))
        if pixel_values.shape[1:] != (3, *self.image_size):
            raise ValueError(
                f"`pixel_values` {pixel_values.shape} must have the shape (images, 3, "
                f"{', '.join(map(str, self.image_size))}"
                "); make them with `preprocess`."
            )
        if input_ids is None:
            # null where prompts bring it
            bos_id = self.description["generation"]["bos_token_id"]
            input_ids = np.array([[bos_id, *self.beginning()[1:]]] * len(pixel_values), np.int64)
        if len(pixel_values) == 0 or len(input_ids) == 0 or len(input_ids) % len(pixel_values):
            raise ValueError(
                f"{len(input_ids)} rows of `input_ids` do not divide among {len(pixel_values)} images; give the same "
                "number of texts for each image, at least one, those of one image next to each other."
            )
        if attention_mask is None:
            attention_mask = np.ones_like(input_ids)
        given = [*input_ids.ravel().tolist(), *(token for words in search.bad_words_ids or () for token in words)]
        if wrong := [token for token in given if not 0 <= token < self.description["vocab_size"]]:
            raise ValueError(
                f"token id {wrong[0]} is outside the vocabulary of {self.description['vocab_size']}; use the "
                "tokenizer of this export."
            )
        regions = self._image_part((pixel_values,))
        texts = len(input_ids) // len(pixel_values)
        names = self._languages_of(input_ids, attention_mask).reshape(-1, texts)
        if (names != names[:, :1]).any():
            # texts of an image that are in different languages are searched for apart
            regions, names, texts = [region.repeat(texts, axis=0) for region in regions], names.reshape(-1, 1), 1

        def search_for(images: np.ndarray) -> np.ndarray:
            """The new tokens of some images, all in one language."""
            rows = (images[:, None] * texts + np.arange(texts)).reshape(-1)
            of_images = [region[images] for region in regions]
            language = str(names[images[0], 0])
            with self._turn:
                return self._search(of_images, input_ids[rows], attention_mask[rows], language, search, seed)

        # what is drawn by chance is drawn for all texts in turn
        number = 1 if search.do_sample else self._searches
        groups = [np.flatnonzero(names[:, 0] == name) for name in dict.fromkeys(names[:, 0])]
        parts = [part for images in groups for part in np.array_split(images, min(number, len(images)))]
        with ThreadPoolExecutor(number) as threads:
            found = list(threads.map(search_for, parts)) if len(parts) > 1 else [search_for(parts[0])]
        per_image = texts * search.num_return_sequences
        longest = max(tokens.shape[1] for tokens in found)
        chosen = np.full((len(names), per_image, longest), filler(search, *self._ends), np.int64)
        for images, tokens in zip(parts, found):
            chosen[images, :, : tokens.shape[1]] = tokens.reshape(len(images), per_image, -1)
        prompts = input_ids.repeat(search.num_return_sequences, axis=0)
        return np.concatenate((prompts, chosen.reshape(len(prompts), longest)), axis=1)

    @property
    def _ends(self) -> tuple[np.ndarray, int]:
        """The tokens that end a text, int64, and the one that stands for none."""
        generation = self.description["generation"]
        return np.asarray(generation["eos_token_ids"], np.int64), generation["pad_token_id"]

    def _languages_of(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """The language of each text, the first one where it names none; `""` where languages make no difference."""
        if not self.languages or not (self.description["output_layers"] or self.description["concepts"]):
            return np.full(len(input_ids), "")
        known = {token: language for language, token in self.languages.items()}
        second = np.minimum((attention_mask != 0).argmax(axis=1) + 1, input_ids.shape[1] - 1)  # behind BOS
        tokens = input_ids[np.arange(len(input_ids)), second]
        return np.array([known.get(token, next(iter(self.languages))) for token in tokens.tolist()])

    def _aside(self, part: Part, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs a part while another search has its turn."""
        self._turn.release()
        try:
            return part(arrays)
        finally:
            self._turn.acquire()

    def _output_layer(self, language: str) -> OutputLayer:
        layers, lists = self.description["output_layers"], self.description["concepts"]
        if language not in self._output_layers:
            places = {token: place for place, token in enumerate(sorted(set().union(*lists.values())))}
            self._output_layers[language] = OutputLayer(
                self.description["vocab_size"],
                layers.get(language),
                partial(self._aside, self._load_output_layer(language)) if layers else None,
                {token: places[token] for token in lists.get(language, ())},
            )
        return self._output_layers[language]

    def _search(
        self,
        regions: Sequence[np.ndarray],
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        language: str,
        search: SearchSettings,
        seed: int | None,
    ) -> np.ndarray:
        """The new tokens `(T*num_return_sequences, L)` of some images, from what the image part gave of them; for who
        has the turn."""
        layer, bias = self._output_layer(language), None
        if self.description["concepts"]:
            *regions, probabilities = regions
            bias = layer.bias(self.description["concept_bias"] * probabilities)
        eos_ids, pad_id = self._ends
        fill = layer.columns[filler(search, eos_ids, pad_id)]
        words = [layer.columns[list(each)].tolist() for each in search.bad_words_ids or ()]
        search = replace(search, bad_words_ids=words)
        prompts = layer.columns[input_ids]
        states = DecoderStates(
            partial(self._aside, self._decoder_step),
            self.description["states"],
            regions,
            len(input_ids) // len(regions[0]),
            self.description["max_positions"],
            layer,
            bias,
        )
        for position in range(input_ids.shape[1]):
            hidden_states = states.read(prompts[:, position], attention_mask[:, position])
        logits = states.score(hidden_states)
        states.repeat(search.rows_per_text)
        logits, prompts, mask = (
            each.repeat(search.rows_per_text, axis=0) for each in (logits, prompts, attention_mask)
        )
        constraints = search.constraints(layer.columns[eos_ids], prompts, mask)
        if search.num_beams > 1:
            chosen = search_with_beams(logits, states, search, constraints, fill)
        else:
            chosen = search_one_by_one(logits, states, search, constraints, fill, seed)
        return layer.token_ids[chosen]

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
        Captions, `num_return_sequences` of each image.

        Args:
            images: of any kind, see [`load_image`].
            prompt: the words that captions begin with, or a question: one for all, or one per image.
            language: of the captions, by default the first of `languages`.
            bad_words: words and phrases that captions must not contain; see [`bad_words_ids`].
            seed, settings: as in `generate`.
        """
        if bad_words:
            # which few ask for, and a cold start would wait for
            from fusion_captioner.inference.bad_words import bad_words_ids

            for word in bad_words:
                check_text(word, "`bad_words`")
            settings["bad_words_ids"] = bad_words_ids(self.tokenizer, bad_words, self.beginning(language)[-1])
        pixel_values = self.preprocess(images)
        prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images; give one, or one per image.")
        input_ids, mask = self.encode(prompts, language)
        generated = self.generate(pixel_values, input_ids, mask, seed=seed, **settings)
        texts = self.decode(generated[:, input_ids.shape[1] :])
        per_image = len(texts) // len(images)
        return [texts[start : start + per_image] for start in range(0, len(texts), per_image)]


def output_layer_name(language: str) -> str:
    """The name of the part that is the output layer of a language, or of all where it is `""`."""
    return f"{OUTPUT_LAYER}_{language}" if language else OUTPUT_LAYER


def is_export(folder: str | Path) -> bool:
    """Whether `folder` holds an exported captioner."""
    return (expanded(folder) / DESCRIPTION).is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """
    The description of an export.

    Raises:
        FileNotFoundError: the folder is no export.
        ValueError: its description is damaged, or of another format.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: has no {DESCRIPTION}; give a folder that `fusion-captioner export` wrote.")
    with reading_export(path):
        description = json.loads(path.read_text(encoding="utf-8"))
        found = description["format"], description["runtime"]
    if found[0] != FORMAT or found[1] not in RUNTIMES_OF_PARTS:
        raise ValueError(
            f"{path}: is of format {found[0]} for the runtime {found[1]!r}, and this version reads format {FORMAT} "
            f"for {', '.join(map(repr, RUNTIMES_OF_PARTS))}; export the captioner again."
        )
    with reading_export(path):
        _check_description(description)
    return description


def _check_description(description: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError, KeyError, TypeError: a field is missing, of another type, or out of range.
    """
    vocab_size = description["vocab_size"]
    tokenizer, generation = description["tokenizer"], description["generation"]
    tokens = {
        "pad_token_id": [tokenizer["pad_token_id"], generation["pad_token_id"]],
        "bos_token_id": [tokenizer["bos_token_id"], generation["bos_token_id"] or 0],  # null where prompts bring it
        "eos_token_ids": generation["eos_token_ids"],
        "languages": [token for _, token in tokenizer["languages"]],
        "concepts": [token for ids in description["concepts"].values() for token in ids],
    }
    for name, ids in tokens.items():
        if any(type(token) is not int or not 0 <= token < vocab_size for token in ids):
            raise ValueError(f"`{name}` ({ids!r:.60}) must be below `vocab_size` ({vocab_size!r:.60})")
    for name, limit in (
        ("max_positions", description["max_positions"]),
        ("model_max_length", tokenizer["model_max_length"]),
    ):
        if limit is not None and type(limit) is not int:
            raise ValueError(f"`{name}` ({limit!r:.60}) must be a number of tokens, or null")
    if any(type(language) is not str for language, _ in tokenizer["languages"]):
        raise ValueError("`languages` must be names with their tokens")
    if not isinstance(description["concept_bias"], int | float):
        raise ValueError("`concept_bias` must be a number")
    layers, languages = description["output_layers"], {language for language, _ in tokenizer["languages"]} or {""}
    for name, given in (("output_layers", layers), ("concepts", description["concepts"])):
        if given and set(given) != languages:
            raise ValueError(f"`{name}` ({list(given)!r:.60}) must be one for each language")
    for ids in layers.values():
        ends = {token for name in ("pad_token_id", "eos_token_ids") for token in tokens[name]}
        if any(type(token) is not int or not 0 <= token < vocab_size for token in ids) or not ends <= set(ids):
            raise ValueError("`output_layers` must be lists of tokens, those that end a text among them")
        if ids != sorted(set(ids)):
            raise ValueError("`output_layers` must be lists of ascending tokens")
    SearchSettings(**generation["settings"])
    if not isinstance(tokenizer["clean_up_tokenization_spaces"], bool) or not isinstance(description["regions"], list):
        raise ValueError("`clean_up_tokenization_spaces` must be true or false, and `regions` a list")
    for state in description["states"]:
        sizes = [1 if size in (IMAGES, TEXTS, PAST) else size for size in state["shape"]]
        if state["shape"][:2] != [IMAGES, TEXTS] or any(type(size) is not int or size < 0 for size in sizes):
            raise ValueError(f"`shape` ({state['shape']!r:.60}) of a state must be {IMAGES!r}, {TEXTS!r} and sizes")
        if not isinstance(state["name"], str) or prod(sizes) > MAX_STATE_SIZE:
            raise ValueError(f"a state of {prod(sizes):,} numbers per text is too large")


def _read_image_settings(path: Path) -> dict[str, Any]:
    with reading_export(path):
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check_processed_size(settings["size"], str(path))
        # every setting is tried, so that none fails on an image and seems to be its fault
        images_to_pixel_values([Image.new("RGB", (8, 8))], settings)
    return settings


def _checked(part: Part, path: Path, outputs: int) -> Part:
    """A part whose outputs are as many as described, with no first one that is not finite."""

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        results = part(arrays)
        with reading_export(path):
            if len(results) != outputs:
                raise ValueError(f"{len(results)} outputs, and {outputs} in {DESCRIPTION}")
            if not np.isfinite(results[0]).all():
                raise ValueError("its results are not finite")
        return results

    return run


def _clean_up_spaces(text: str) -> str:
    """As tokenizers of transformers do with `clean_up_tokenization_spaces`."""
    for old in (" .", " ?", " !", " ,"):
        text = text.replace(old, old[1:])
    text = text.replace(" ' ", "'")
    for old in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(old, old[1:])
    return text

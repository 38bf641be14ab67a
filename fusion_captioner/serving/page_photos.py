"""What the page does with photos, without the page itself: captions with probabilities and maps, answers, files."""

import csv
import io
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fusion_captioner.evaluation.html_page import jpeg_uri, render, shrunk
from fusion_captioner.files import check_no_link, write_text
from fusion_captioner.image_loading import load_image
from fusion_captioner.inference.attention_maps import (
    DEFAULT_METHOD,
    ExplainedCaption,
    explain_caption,
    read_caption,
)
from fusion_captioner.inference.attention_page import lit
from fusion_captioner.inference.caption_formats import Csv
from fusion_captioner.inference.predictors import write_answers
from fusion_captioner.serving.page_texts import TEXTS
from fusion_captioner.training.task_file import saved_task

BEAMS = 5
MAX_NEW_TOKENS = 30
BATCH = 8
MAP_SIDE = 420  # pixels, the longer side


@dataclass(frozen=True, slots=True)
class Alternative:
    """A caption of beam search, and its probability given the photo."""

    text: str
    probability: float


class PagePhotos:
    """
    Several threads may call it: one photo is worked on at a time.

    Args:
        model, processor: a `FusionCaptionerForConditionalGeneration` and its processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self._lock = threading.Lock()

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that it captions in, the default first; empty for a captioner of one language."""
        return self.processor.languages

    def alternatives(self, photo: Image.Image, language: str | None = None) -> list[Alternative]:
        """The captions that beam search ends with, the most probable first; `language` is one of `languages`."""
        with self._lock, torch.inference_mode():
            pixel_values = self.processor(images=photo, return_tensors="pt")["pixel_values"].to(self.model.device)
            regions = self.model.get_image_hidden_states(pixel_values)
            sequences = self.model.generate(
                image_hidden_states=regions,
                language=language,
                num_beams=BEAMS,
                num_return_sequences=BEAMS,
                max_new_tokens=MAX_NEW_TOKENS,
            )
            texts = [text.strip() for text in self.processor.batch_decode(sequences, skip_special_tokens=True)]
            texts = list(dict.fromkeys(texts))
            inputs = self.processor(text=texts, language=language, add_eos=True, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            logits = self.model(**inputs, image_hidden_states=regions, use_cache=False).logits[:, :-1].float()
            words = inputs["input_ids"][:, 1:]
            scores = logits.log_softmax(dim=-1).gather(-1, words[..., None]).squeeze(-1)
            counts = inputs["attention_mask"][:, 1:].bool()
            for token_id in self.processor.language_token_ids.values():
                counts &= words != token_id  # is given, and not found
            probabilities = (scores * counts).sum(dim=1).exp().tolist()
        found = [Alternative(text, value) for text, value in zip(texts, probabilities, strict=True)]
        return sorted(found, key=lambda alternative: -alternative.probability)

    def word_maps(self, photo: Image.Image, text: str, page_language: str, language: str | None = None) -> str:
        """
        The words of a caption as a choice, each with its maps, as HTML: the page's default map, and where the fusion
        attends, attention next to it.

        Args:
            text: the caption.
            page_language: of the page's own words, a key of `TEXTS`.
            language: of the caption, one of `languages`.
        """
        attends = hasattr(self.model.model.fusion, "num_heads")
        methods = [DEFAULT_METHOD, *(["attention"] if attends and DEFAULT_METHOD != "attention" else [])]
        with self._lock:
            read = read_caption(self.model, self.processor, photo, text, language)
            captions = [explain_caption(read, self.processor, photo, method) for method in methods]
        small, texts = shrunk(photo, MAP_SIDE), TEXTS[page_language]
        words = [
            {
                "text": word,
                "maps": [
                    {
                        "uri": jpeg_uri(lit(small, caption, place)),
                        "title": texts[f"map_{method}"],
                        "alt": texts["map_alt"].format(word=word, place=texts["places"][_place(caption, place)]),
                    }
                    for method, caption in zip(methods, captions, strict=True)
                ],
            }
            for place, word in enumerate(captions[0].words)
        ]
        return render("serving/word_maps.html", words=words, texts=texts)

    def captions(
        self, photos: Sequence[str], language: str | None = None
    ) -> Iterator[tuple[list[tuple[str, str]], list[str]]]:
        """For each batch of files its photos with their captions, and what is wrong with others; `language` is one of
        `languages`."""
        for start in range(0, len(photos), BATCH):
            pictures, names, problems = [], [], []
            for name in photos[start : start + BATCH]:
                try:
                    pictures.append(load_image(name))
                    names.append(name)
                except (ValueError, OSError) as error:
                    problems.append(str(error))
            texts: list[str] = []
            if pictures:
                with self._lock, torch.inference_mode():
                    inputs = self.processor(images=pictures, return_tensors="pt").to(self.model.device)
                    generated = self.model.generate(
                        **inputs, language=language, num_beams=3, max_new_tokens=MAX_NEW_TOKENS
                    )
                    texts = self.processor.batch_decode(generated, skip_special_tokens=True)
            yield [(name, text.strip()) for name, text in zip(names, texts, strict=True)], problems

    def answer(self, photo: Image.Image, question: str) -> str:
        """
        Raises:
            ValueError: the question is empty.
        """
        if not question.strip():
            raise ValueError("the question is empty; ask something.")
        with self._lock:
            return write_answers(self.model, self.processor, question.strip(), [photo])[0]


def answers_questions(name: str, revision: str) -> bool:
    """Whether a checkpoint was trained for the task `prompted`; one that does not say so was not."""
    return saved_task(name, revision) == "prompted"


def _place(caption: ExplainedCaption, word: int) -> int:
    """Which ninth of the photo, row by row, the word depends on most."""
    return int(caption.photo_map(word, (3, 3)).argmax())


# Files with the content that a page wrote, or read without leaving anything out: it may replace those.
Known = MutableMapping[Path, str]


def saved_captions(folder: Path, names: Sequence[str], table: Path, known: Known) -> dict[str, str]:
    """
    The captions that a folder holds already, in a table or next to its photos; of both, those of the newer file.

    Args:
        folder, names: of the photos, by their names below the folder.
        table: with the columns `image` and `caption`; it need not exist.
        known: a file is added if it holds nothing but a caption for each of some of the photos.
    """
    sidecars: dict[Path, list[str]] = {}
    for name in names:
        sidecars.setdefault((folder / name).with_suffix(".txt"), []).append(name)
    found: list[tuple[float, dict[str, str]]] = []
    for file in (table, *sidecars):
        if not file.is_file() or file.is_symlink():
            continue
        try:
            content = file.read_bytes().decode()
            text = content.removeprefix("\ufeff")
            if file == table:
                captions, is_whole = _read_table(text, names)
            else:
                lines = [line for line in text.splitlines() if line.strip()]
                captions, is_whole = dict.fromkeys(sidecars[file], lines[0] if lines else ""), len(lines) < 2
        except (UnicodeDecodeError, csv.Error):
            continue
        if is_whole:
            known[file] = content
        captions = {name: " ".join(caption.split()) for name, caption in captions.items()}
        found.append((file.stat().st_mtime, {name: caption for name, caption in captions.items() if caption}))
    held = {name: text for _, captions in sorted(found, key=lambda each: each[0]) for name, text in captions.items()}
    return {name: held[name] for name in names if name in held}


def _read_table(text: str, names: Sequence[str]) -> tuple[dict[str, str], bool]:
    """The captions by image, and whether the table holds nothing but a caption for each of some of `names`."""
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = list(table)
    captions = {row.get("image") or "": row.get("caption") or "" for row in rows}
    has_other_values = table.fieldnames != ["image", "caption"] or any(None in row for row in rows)
    return captions, not has_other_values and len(captions) == len(rows) and captions.keys() <= set(names)


def save_csv(
    file: Path, captions: Sequence[tuple[str, str]], replace_existing: bool, known: Known | None = None
) -> Path:
    """
    A table with the columns `image` and `caption`, which training reads.

    Args:
        captions: name of the photo, and its caption.
        known: a file with this content is replaced; what is written is added.

    Raises:
        FileExistsError: there is such a file with other content, and `replace_existing` is false; or it is a link.
    """
    table = Csv(captions=1)
    rows = [table.header, *(table.row(name, [text]) for name, text in captions)]
    _write({file: b"".join(rows).decode()}, replace_existing, {} if known is None else known)
    return file


def save_sidecars(
    folder: Path, captions: Sequence[tuple[str, str]], replace_existing: bool, known: Known | None = None
) -> list[Path]:
    """
    A text file next to each photo, `photo.txt` for `photo.jpg`; all or none are written.

    Args:
        folder: of the photos.
        captions: name of the photo below the folder, and its caption.
        known: as of `save_csv`.

    Raises:
        FileExistsError: there is such a file with other content, and `replace_existing` is false; or it is a link.
        ValueError: two photos differ only by their ending, so that they would share a file.
    """
    files = {(folder / name).with_suffix(".txt"): text for name, text in captions}
    if len(files) < len(captions):
        raise ValueError(f"{folder}: photos that differ by their ending alone would share a file; save a CSV instead.")
    _write({file: f"{text}\n" for file, text in files.items()}, replace_existing, {} if known is None else known)
    return list(files)


def _write(contents: dict[Path, str], replace_existing: bool, known: Known) -> None:
    """All files or none."""
    for file, content in contents.items():
        check_no_link(file)
        if replace_existing or not file.exists():
            continue
        expected = (content, known.get(file, content))
        if file.read_bytes() not in [text.encode("utf-8", errors="replace") for text in expected]:  # as `write_text`
            raise FileExistsError(
                f"{file}: exists already with other content; allow the page to replace it, or move it."
            )
    for file, content in contents.items():
        write_text(file, content)
        known[file] = content

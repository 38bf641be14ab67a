"""METEOR itself, version 1.5: the Java program that comes with pycocoevalcap, as coco-caption runs it."""

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

import numpy as np

from fusion_captioner.metrics.tokenization import Caption, Tokenizer, Tokens, tokenize_caption, tokenize_corpus


def find_meteor_jar() -> Path:
    """The METEOR program of the installed pycocoevalcap.

    Raises:
        FileNotFoundError: if pycocoevalcap or Java is not installed.
    """
    if shutil.which("java") is None:
        raise FileNotFoundError(
            "METEOR needs Java, and there is no `java` on the path: install a Java runtime, or use METEOR-exact-stem."
        )
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(
            "METEOR needs its Java program, which comes with pycocoevalcap: `pip install pycocoevalcap`, or use "
            "METEOR-exact-stem."
        )
    return Path(package.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar"


def meteor(
    predictions: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    tokenizer: Tokenizer | None = tokenize_caption,
    modules: str | None = None,
) -> tuple[float, np.ndarray]:
    """METEOR 1.5 with all its modules: exact, stem, synonym, paraphrase.

    Args:
        predictions: one caption per image: strings, or sequences of words where `tokenizer` is `None`.
        references: for each image its reference captions.
        tokenizer: callable from string to words, or `None`.
        modules: fewer modules, such as `"exact stem"`, which `meteor_exact_stem` computes without Java.

    Returns:
        the score of the corpus (from the counts summed over the images) and of the images, (images,) float64.

    Raises:
        FileNotFoundError: if Java or pycocoevalcap is not installed.
        ValueError: if predictions and references do not fit, are empty or of the wrong type.
        RuntimeError: if the program stops early.
    """
    prediction_tokens, reference_tokens = tokenize_corpus(predictions, references, tokenizer)
    jar = find_meteor_jar()
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    if modules is not None:
        command += ["-m", modules]
    program = subprocess.Popen(
        command,
        cwd=jar.parent,  # it looks for its paraphrases next to itself
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        with program:
            pipes = cast(tuple[IO[str], IO[str]], (program.stdin, program.stdout))
            counts = [
                _ask(*pipes, " ||| ".join(["SCORE", *map(_line, captions), _line(prediction)]))
                for prediction, captions in zip(prediction_tokens, reference_tokens)
            ]
            first = _ask(*pipes, " ||| ".join(["EVAL", *counts]))
            # One score a line: those of the images, then that of the corpus.
            scores = [float(first)] + [float(_read(pipes[1])) for _ in counts]
    except (BrokenPipeError, EOFError):
        raise RuntimeError(f"METEOR's Java program ended early, with exit status {program.wait()}.") from None
    return scores[-1], np.array(scores[:-1])


def _line(tokens: Tokens) -> str:
    # The program's own separator must not come from a caption.
    return " ".join(map(str, tokens)).replace("|||", " ")


def _ask(questions: IO[str], answers: IO[str], line: str) -> str:
    questions.write(line + "\n")
    questions.flush()
    return _read(answers)


def _read(answers: IO[str]) -> str:
    answer = answers.readline().strip()
    if not answer:
        raise EOFError
    return answer

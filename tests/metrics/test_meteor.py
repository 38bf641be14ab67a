import random
import shutil
import subprocess
import zipfile

import numpy as np
import pytest

from fusion_captioner.metrics import meteor_java, score_captions
from fusion_captioner.metrics.meteor import FUNCTION_WORDS, align, count_chunks, meteor_exact_stem, normalize_tokens
from fusion_captioner.metrics.meteor_java import find_meteor_jar, meteor

ODD_CAPTIONS = [
    "kids' toys on mom's bed", "'hello' world's o'clock '", "it's the 1990's", "a black-and-white t-v-s -- show",
    "50% off a_b",
    "café naïve собака 中文 字", "a u.s. flag on main st.", "the st. louis arch", "mr. 5 at 5 p.m.", "wow... a ... b",
    "-", "",
]  # fmt: skip


def align_words(prediction, reference):
    prediction, reference = prediction.split(), reference.split()
    return [(i, j) for i, j, _ in align(prediction, reference, prediction, reference)]


def test_of_a_repeated_word_the_one_in_the_longer_chunk_is_matched():
    assert align_words("a b a c", "a c") == [(2, 0), (3, 1)]
    assert align_words("a c a b", "x a b") == [(2, 1), (3, 2)]


def test_an_exact_match_is_preferred_to_a_stem_match():
    matches = align(["dogs", "dog"], ["dog"], ["dog", "dog"], ["dog"])
    assert [tuple(match) for match in matches] == [(1, 0, True)]


def test_chunks():
    assert count_chunks([]) == 0
    assert [len(align_words("a b c", "a b c")), len(align_words("a b c", "c a b"))] == [3, 3]
    prediction, reference = ["a", "b", "x", "c", "d"], ["c", "d", "a", "b"]
    assert count_chunks(align(prediction, reference, prediction, reference)) == 2


def test_whole_match():
    assert meteor_exact_stem(["A dog runs."], [["a dog runs"]])[0] == 1
    # A stem match weighs .6; the captions match whole, so nothing is fragmented.
    assert meteor_exact_stem(["dogs"], [["dog"]])[0] == pytest.approx(0.6)


def test_formula():
    # "a" is a function word and weighs .25, the others .75; one chunk of two matches.
    precision, recall = 1 / 1.75, 1
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert meteor_exact_stem(["a cat sat"], [["a cat"]])[0] == pytest.approx(mean * (1 - 0.6 * (1 / 2) ** 0.2))


def test_the_best_reference_counts():
    assert meteor_exact_stem(["a cat"], [["a dog", "a cat", "cats"]])[0] == 1


def test_the_corpus_score_pools_the_images():
    corpus, images = meteor_exact_stem(["a cat", "dog"], [["a cat"], ["man"]])
    assert images == pytest.approx([1, 0])
    precision = recall = 1 / 1.75
    assert corpus == pytest.approx(precision * recall / (0.85 * precision + 0.15 * recall))


def test_captions_without_words_score_0():
    assert (meteor_exact_stem(["", "a"], [["a"], [""]])[1] == 0).all()


def test_token_ids_are_refused():
    with pytest.raises(ValueError, match="token 7 is a int: METEOR needs words"):
        meteor_exact_stem([[7]], [[["a"]]], tokenizer=None)


def test_normalization():
    assert normalize_tokens(["kid's", "black-and-white", "t-shirt"]) == [
        "kid",
        "'s",
        "black",
        "and",
        "white",
        "t",
        "shirt",
    ]


@pytest.mark.java
def test_normalization_and_function_words_are_those_of_the_program(java):
    jar = find_meteor_jar()
    command = [java, "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar)]
    answer = subprocess.run(
        [*command, "edu.cmu.meteor.util.Normalizer", "en", "true"],
        input="\n".join(ODD_CAPTIONS),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    lines = answer.stdout.lower().split("\n")
    assert [" ".join(normalize_tokens(caption.split())) for caption in ODD_CAPTIONS] == lines[: len(ODD_CAPTIONS)]
    with zipfile.ZipFile(jar) as archive:
        assert frozenset(archive.read("function/english.words").decode().split()) == FUNCTION_WORDS


def assert_equals_program(predictions, references):
    corpus, images = meteor_exact_stem(predictions, references)
    program_corpus, program_images = meteor(predictions, references, modules="exact stem")
    assert np.abs(images - program_images).max() < 1e-9
    assert corpus == pytest.approx(program_corpus, abs=1e-9)


@pytest.mark.java
def test_equals_the_program_where_words_repeat(java):
    # Few words, repeated and inflected: many equal alignments, and more paths than the beam holds.
    words = ["a", "the", "dog", "dogs", "dog's", "run", "runs", "running", "on", "red", "reds", "ball"]
    random.seed(0)

    def caption(shortest):
        return " ".join(random.choices(words, k=random.randint(shortest, 25)))

    references = [[caption(1) for _ in range(random.randint(1, 3))] for _ in range(300)]
    predictions = [caption(0) for _ in references[50:]] + [captions[-1] for captions in references[:50]]
    assert_equals_program(predictions, references)


@pytest.mark.java
@pytest.mark.real_data
def test_equals_the_program_on_real_captions(java, coco_captions):
    assert_equals_program(
        [captions[0] for captions in coco_captions[:1000]], [captions[1:] for captions in coco_captions[:1000]]
    )


@pytest.mark.java
def test_meteor_itself_is_there_on_request_and_knows_synonyms(java):
    scores = score_captions(["a kid runs"], [["a child runs"]], metrics=["METEOR", "METEOR-exact-stem"])
    assert scores["METEOR-exact-stem"] + 0.1 < scores["METEOR"] < 1
    assert " | METEOR 1.5 en norm | " in scores["signature"]


@pytest.mark.java
def test_a_program_that_ends_early_is_an_error(java, monkeypatch, tmp_path):
    monkeypatch.setattr(meteor_java, "find_meteor_jar", lambda: tmp_path / "missing.jar")
    with pytest.raises(RuntimeError, match="ended early, with exit status 1"):
        meteor(["a"], [["a"]])


def test_without_java_or_its_program_meteor_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(FileNotFoundError, match="install a Java runtime, or use METEOR-exact-stem"):
        meteor(["a"], [["a"]])
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(meteor_java, "find_spec", lambda package: None)
    with pytest.raises(FileNotFoundError, match="pip install pycocoevalcap"):
        meteor(["a"], [["a"]])

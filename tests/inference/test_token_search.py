"""Searches drop images whose texts have all ended, and choose what they would have chosen with them."""

import numpy as np
import pytest

from fusion_captioner.given_values import MAX_LENGTH_PENALTY
from fusion_captioner.inference.token_search import SearchSettings, _top, search_one_by_one, search_with_beams

EOS, VOCABULARY = 1, 12
EOS_IDS = np.array([EOS])


class Chance:
    """A decoder whose logits depend on the image, the text so far and nothing else. Images end sooner the later they
    are."""

    def __init__(self, images: list[int], rows_per_image: int) -> None:
        self.numbers = images
        self.texts = [(number,) for number in images for _ in range(rows_per_image)]
        self.computed = [len(images)]

    @property
    def images(self) -> int:
        return len(self.numbers)

    def logits(self) -> np.ndarray:
        self.computed.append(self.images)
        rows = []
        for text in self.texts:
            row = np.random.default_rng(text).standard_normal(VOCABULARY).astype(np.float32) * 2
            row[EOS] += 0.8 * text[0] * (len(text) - 2)
            rows.append(row)
        return np.stack(rows)

    def advance(self, token_ids: np.ndarray) -> np.ndarray:
        self.texts = [(*text, int(token)) for text, token in zip(self.texts, token_ids, strict=True)]
        return self.logits()

    def reorder(self, order: np.ndarray) -> None:
        rows = len(self.texts) // self.images
        assert (order // rows == np.arange(len(order)) // rows).all()  # each stays with its image
        self.texts = [self.texts[place] for place in order]

    def keep(self, images: np.ndarray) -> None:
        rows = len(self.texts) // self.images
        self.texts = [text for place, text in enumerate(self.texts) if images[place // rows]]
        self.numbers = [number for number, kept in zip(self.numbers, images, strict=True) if kept]


def search(images: list[int], settings: SearchSettings, prompts: int) -> tuple[list[list[int]], list[int]]:
    """Tokens of each text up to its end, and how many images were computed at each step."""
    decoder = Chance(images, prompts * settings.rows_per_text)
    begun = np.full((len(decoder.texts), 1), 2)
    constraints = settings.constraints(EOS_IDS, begun, np.ones_like(begun))
    if settings.num_beams > 1:
        tokens = search_with_beams(decoder.logits(), decoder, settings, constraints, 0)
    else:
        tokens = search_one_by_one(decoder.logits(), decoder, settings, constraints, 0, seed=0)
    texts = [row[: row.index(EOS) + 1] if EOS in row else row for row in tokens.tolist()]
    return texts, decoder.computed[1:]


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        SearchSettings(max_new_tokens=12),
        SearchSettings(max_new_tokens=12, min_new_tokens=4),
        SearchSettings(max_new_tokens=12, do_sample=True, top_k=1, num_return_sequences=2),
        SearchSettings(max_new_tokens=12, num_beams=3, num_return_sequences=2),
        SearchSettings(max_new_tokens=12, num_beams=3, min_new_tokens=4, length_penalty=0.5),
        SearchSettings(max_new_tokens=12, repetition_penalty=1.5, bad_words_ids=[[3], [2, 5]]),
        SearchSettings(max_new_tokens=12, num_beams=3, repetition_penalty=1.5, no_repeat_ngram_size=2),
    ],
    ids=[
        "greedy",
        "at least 4",
        "sampling",
        "beams",
        "beams, at least 4",
        "greedy, constrained",
        "beams, constrained",
    ],
)
def test_a_batch_ends_as_each_image_alone_and_computes_no_more_than_it_must(
    settings: SearchSettings, prompts: int
) -> None:
    images = [1, 5, 0, 3]
    together, computed = search(images, settings, prompts)
    alone = [search([image], settings, prompts) for image in images]
    assert together == [text for texts, _ in alone for text in texts]
    steps = [len(computed_alone) for _, computed_alone in alone]
    assert computed == [sum(each > step for each in steps) for step in range(max(steps))]
    assert min(computed) < max(computed)


@pytest.mark.parametrize("width", [1, 6, 59, 60, 61, 70, 79, 1234])
@pytest.mark.parametrize("number", [1, 6])
def test_the_highest_scores_are_those_of_a_full_sort(width: int, number: int) -> None:
    scores = np.random.default_rng(width).permuted(np.tile(np.arange(width, dtype=np.float32), (5, 1)), axis=1)
    scores[0] = np.sort(scores[0])  # the highest in a row, at the end
    expected = np.argsort(-scores, axis=1)[:, :number]
    assert np.array_equal(_top(scores, number), expected)


@pytest.mark.parametrize(
    "settings",
    [{"length_penalty": value} for value in (300.0, -300.0, float("nan"), float("inf"))]
    + [{"temperature": value} for value in (0.0, float("nan"), float("inf"))],
)
def test_numbers_that_no_score_can_be_computed_with_are_refused(settings: dict[str, float]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"`{name}` \({value}\) must be"):
        SearchSettings(**settings)


def test_any_length_penalty_that_is_taken_gives_texts() -> None:
    for penalty in (-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY):
        with np.errstate(all="raise", under="ignore"):
            texts, _ = search([1, 2], SearchSettings(max_new_tokens=40, num_beams=3, length_penalty=penalty), 1)
        assert all(texts)

"""
Choosing tokens from logits, without torch: greedy, by chance, or with beams.

Token for token what transformers' `generate` chooses; beams follow its `_beam_search` with `early_stopping=False`.
Images whose texts have all ended are not computed any further.

T: texts (rows), V: tokens to choose from, B: searches, N: beams of a search, C: candidates kept a step,
L: longest text in tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fusion_captioner.given_values import (
    check_length_penalty,
    check_new_tokens,
    check_repetition_penalty,
    check_temperature,
)
from fusion_captioner.inference.token_constraints import TokenConstraints

# Stands for "never": far below any score, and finite, as in transformers.
NEVER = np.float32(-1e9)
# Scores of which only the highest is compared at first, when the highest of many are looked for.
_STRANDS = 32


class Decoder(Protocol):
    """What a search needs of the decoder and its states; [`DecoderStates`] is one."""

    @property
    def images(self) -> int:
        """Images that are computed; each has the same number of adjacent rows."""
        ...

    def advance(self, token_ids: np.ndarray) -> np.ndarray:
        """From the token of each text, (T,), to the logits after it, (T, V)."""
        ...

    def reorder(self, order: np.ndarray) -> None:
        """Give row `i` the state of row `order[i]`."""
        ...

    def keep(self, images: np.ndarray) -> None:
        """Keep only the rows of images that are True."""
        ...


@dataclass(frozen=True)
class SearchSettings:
    """
    How tokens are chosen; the names, defaults and meanings are those of transformers' `generate`.

    Args:
        max_new_tokens, min_new_tokens (`int`): tokens behind the prompt.
        num_beams (`int`): 1 is greedy, or sampling with `do_sample`.
        num_return_sequences (`int`): texts per input, at most `num_beams`, or any number with `do_sample`.
        length_penalty (`float`): the exponent of the length that a finished beam's score is divided by.
        do_sample (`bool`): draw tokens by their probabilities, after `temperature`, `top_k` (0: all) and `top_p`.
        repetition_penalty, no_repeat_ngram_size, bad_words_ids: see [`TokenConstraints`].

    Raises:
        ValueError: names the setting, its value and what would be right.
    """

    max_new_tokens: int = 20
    min_new_tokens: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        check_new_tokens(self.max_new_tokens, "`max_new_tokens`")
        for name in ("num_beams", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` ({getattr(self, name)}) must be at least 1.")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"`min_new_tokens` ({self.min_new_tokens}) must be 0 to `max_new_tokens` ({self.max_new_tokens})."
            )
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"`do_sample` does not go with `num_beams` ({self.num_beams}); set `num_beams=1`.")
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"`num_return_sequences` ({self.num_return_sequences}) needs at least as many `num_beams` "
                f"({self.num_beams}), or `do_sample=True`."
            )
        check_length_penalty(self.length_penalty, "`length_penalty`")
        check_temperature(self.temperature, "`temperature`")
        if self.top_k < 0:
            raise ValueError(f"`top_k` ({self.top_k}) must be 0 (all tokens) or positive.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` ({self.top_p}) must be above 0 and at most 1.")
        check_repetition_penalty(self.repetition_penalty, "`repetition_penalty`")
        if self.no_repeat_ngram_size < 0:
            raise ValueError(f"`no_repeat_ngram_size` ({self.no_repeat_ngram_size}) must be 0 (no limit) or positive.")
        for words in self.bad_words_ids or ():
            if not words or any(type(token) is not int or token < 0 for token in words):
                raise ValueError(f"`bad_words_ids` ({words!r:.60}) must be lists of token ids, none of them empty.")

    @property
    def rows_per_text(self) -> int:
        """Rows that an input takes while tokens are chosen."""
        return self.num_return_sequences if self.do_sample else self.num_beams

    def constraints(self, eos_ids: np.ndarray, prompts: np.ndarray, mask: np.ndarray) -> TokenConstraints:
        """The constraints of a search behind `prompts`, int64 (T, L), whose `mask` is 0 at padding."""
        return TokenConstraints(
            self.repetition_penalty,
            self.no_repeat_ngram_size,
            self.bad_words_ids or (),
            self.min_new_tokens,
            eos_ids,
            prompts,
            (mask != 0).argmax(axis=1),
        )


def filler(settings: SearchSettings, eos_ids: np.ndarray, pad_id: int) -> int:
    """The token behind the end of a text, as transformers has it: beams have EOS there if the padding token is 0."""
    return pad_id or (int(eos_ids[0]) if settings.num_beams > 1 and len(eos_ids) else 0)


def search_one_by_one(
    logits: np.ndarray,
    decoder: Decoder,
    settings: SearchSettings,
    constraints: TokenConstraints,
    fill: int,
    seed: int | None,
) -> np.ndarray:
    """
    Greedy search or sampling: each row for itself.

    Args:
        logits: float32 (T, V), after the prompts.
        decoder: has read the prompts.
        constraints: of the prompts of all rows.
        fill: what follows the token that ends a text, see [`filler`].
        seed: of the tokens that `do_sample` draws.

    Returns:
        int64 (T, new tokens).
    """
    # where nothing is drawn, `numpy.random` stays unloaded, which a cold start would wait for
    random = np.random.default_rng(seed) if settings.do_sample else None
    tokens = np.full((len(logits), settings.max_new_tokens), fill, np.int64)
    rows = np.arange(len(logits))  # those that the decoder still has
    running = np.ones(len(logits), bool)  # of these, those that have not ended
    for position in range(settings.max_new_tokens):
        if position:
            goes_on = np.logical_or.reduce(running.reshape(decoder.images, -1), axis=1)
            if not goes_on.all():
                decoder.keep(goes_on)
                going = goes_on.repeat(len(rows) // len(goes_on))
                rows, running = rows[going], running[going]
            logits = decoder.advance(tokens[rows, position - 1])
        logits = constraints(logits, rows, tokens[rows, :position])
        chosen = logits.argmax(axis=-1) if random is None else _drawn(logits, settings, random)
        tokens[rows[running], position] = chosen[running]
        running &= (chosen[:, None] != constraints.eos_ids).all(axis=1)
        if not running.any():
            return tokens[:, : position + 1]
    return tokens


def search_with_beams(
    logits: np.ndarray, decoder: Decoder, settings: SearchSettings, constraints: TokenConstraints, fill: int
) -> np.ndarray:
    """
    Beam search.

    Args:
        logits: float32 (B*N, V), after the prompts; the N rows of a search are adjacent.
        decoder, constraints, fill: as in `search_one_by_one`.

    Returns:
        int64 (B*num_return_sequences, new tokens), best first.
    """
    eos_ids = constraints.eos_ids
    beams, length, penalty = settings.num_beams, settings.max_new_tokens, settings.length_penalty
    searches = len(logits) // beams
    candidates = max(2, 1 + len(eos_ids)) * beams  # enough that N remain if all the best end
    results = np.full((searches, beams, length), fill, np.int64)
    result_lengths = np.zeros((searches, beams), np.int64)
    places = np.arange(searches)  # the searches that the decoder still has; all that follows is about these

    running = results.copy()
    finished = results.copy()
    finished_lengths = result_lengths.copy()
    # beams start alike, so that the first step takes all of its candidates from the first one
    running_scores = np.where(np.arange(beams) == 0, np.float32(0), NEVER)[None].repeat(searches, axis=0)
    finished_scores = np.full((searches, beams), NEVER)
    is_finished = np.zeros((searches, beams), bool)
    may_improve = np.ones((searches, 1), bool)

    for position in range(length):
        if position:
            logits = decoder.advance(running[:, :, position - 1].reshape(-1))
        rows = (beams * places[:, None] + np.arange(beams)).reshape(-1)
        scores = constraints(_log_softmax(logits), rows, running[:, :, :position].reshape(len(rows), position))
        vocab_size = scores.shape[-1]
        scores += running_scores.reshape(-1, 1)
        scores = scores.reshape(len(places), -1)
        each = np.arange(len(places))[:, None]  # of (B, 1): picks from a search's own row
        best = _top(scores, candidates)  # (B, C)
        scores = scores[each, best]
        parents, words = best // vocab_size, best % vocab_size
        texts = running[each, parents]  # (B, C, L)
        texts[:, :, position] = words
        ends = (words[:, :, None] == eos_ids).any(axis=2) | (position + 1 == length)

        open_scores = scores + ends * NEVER
        kept = _top(open_scores, beams)
        running = texts[each, kept]
        running_scores = open_scores[each, kept]

        # candidates beyond the first N continue a text and do not end one
        ends &= np.arange(candidates) < beams
        if ends.any():
            scores = scores / np.float32((position + 1) ** penalty)
            scores = scores + ~may_improve * NEVER + ~ends * NEVER
            merged_scores: np.ndarray = np.concatenate((finished_scores, scores), axis=1)
            best_finished = _top(merged_scores, beams)
            finished_scores = merged_scores[each, best_finished]
            finished = np.concatenate((finished, texts), axis=1)[each, best_finished]
            lengths = np.concatenate((finished_lengths, np.full_like(best, position + 1)), axis=1)
            finished_lengths = lengths[each, best_finished]
            is_finished = np.concatenate((is_finished, ends), axis=1)[each, best_finished]

        # a search continues while its best open beam, if it ended now, would beat its worst finished one
        best_open = running_scores[:, :1] / np.float32((position + 1) ** penalty)
        worst_finished = np.where(is_finished, finished_scores.min(axis=1, keepdims=True), NEVER)
        may_improve &= (best_open > worst_finished).any(axis=1, keepdims=True)
        if not may_improve.any() or position + 1 == length:
            break
        order = parents[each, kept]
        goes_on = np.logical_or.reduce(may_improve.reshape(decoder.images, -1), axis=1)
        if not goes_on.all():
            decoder.keep(goes_on)
            going = goes_on.repeat(len(places) // len(goes_on))
            results[places[~going]], result_lengths[places[~going]] = finished[~going], finished_lengths[~going]
            places, order, may_improve = places[going], order[going], may_improve[going]
            running, running_scores = running[going], running_scores[going]
            finished, finished_scores = finished[going], finished_scores[going]
            finished_lengths, is_finished = finished_lengths[going], is_finished[going]
        decoder.reorder((order + beams * np.arange(len(places))[:, None]).reshape(-1))

    results[places], result_lengths[places] = finished, finished_lengths
    returned = settings.num_return_sequences
    longest = result_lengths[:, :returned].max()
    return results[:, :returned, :longest].reshape(searches * returned, longest)


def _top(scores: np.ndarray, number: int) -> np.ndarray:
    """Places of the `number` highest scores of each row, highest first."""
    each = np.arange(len(scores))[:, None]
    columns = scores.shape[-1] // _STRANDS
    if columns <= number:
        return np.argsort(-scores, axis=-1, kind="stable")[:, :number]
    # the highest scores lie in the strands with the highest maxima: places `columns` apart form a strand
    even = columns * _STRANDS
    highest = scores[:, :even].reshape(len(scores), _STRANDS, columns).max(axis=1)
    strands = np.argpartition(highest, columns - number, axis=-1)[:, columns - number :]
    places = (strands[:, None] + columns * np.arange(_STRANDS)[:, None]).reshape(len(scores), -1)
    rest = np.arange(even, scores.shape[-1])
    places = np.concatenate((places, rest[None].repeat(len(scores), axis=0)), axis=1)
    order = np.argsort(-scores[each, places], axis=-1, kind="stable")[:, :number]
    return places[each, order]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """In place: log-probabilities take the place of the logits."""
    logits -= logits.max(axis=-1, keepdims=True)
    # einsum adds rows as long as a vocabulary up in a third of the time that `sum` takes
    logits -= np.log(np.einsum("tv->t", np.exp(logits)))[:, None]
    return logits


def _drawn(logits: np.ndarray, settings: SearchSettings, random: "np.random.Generator") -> np.ndarray:
    """A token per row, drawn from what `temperature`, `top_k` and `top_p` leave, in this order."""
    logits = logits.astype(np.float64) / settings.temperature
    if 0 < settings.top_k < logits.shape[-1]:
        least = -np.partition(-logits, settings.top_k - 1, axis=-1)[:, settings.top_k - 1, None]
        logits = np.where(logits < least, -np.inf, logits)
    order = np.argsort(-logits, axis=-1, kind="stable")
    probabilities = np.exp(_log_softmax(np.take_along_axis(logits, order, axis=-1)))
    # the probability of all that is likelier: the first token always stays
    before = probabilities.cumsum(axis=-1) - probabilities
    probabilities[before >= settings.top_p] = 0
    threshold = random.random((len(logits), 1)) * probabilities.sum(axis=-1, keepdims=True)
    place = (probabilities.cumsum(axis=-1) > threshold).argmax(axis=-1)
    return np.take_along_axis(order, place[:, None], axis=-1)[:, 0]

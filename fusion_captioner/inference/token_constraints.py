"""
Which tokens a search may choose next, without torch: the scores that transformers' logits processors give.

T: texts (rows), C: columns, the tokens that can be chosen, L: tokens so far, of prompt and text

Tokens of prompts, and of words that are forbidden, may lie behind the columns; such tokens are never chosen anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenConstraints:
    """
    The constraints of a search, in the order of transformers.

    Args:
        repetition_penalty (`float`): divides the scores of tokens that are there already (Keskar et al., 2019,
            section 4.1); padding in front of the prompt does not count.
        no_repeat_ngram_size (`int`): no sequence of so many tokens comes twice; 0 allows all.
        bad_words_ids (`Sequence[Sequence[int]]`): token sequences that never occur.
        min_new_tokens (`int`): tokens before the first of `eos_ids`.
        eos_ids (`np.ndarray`): int64, the tokens that end a text.
        prompts (`np.ndarray` of shape `(T, L)`): int64, padded on the left.
        padding (`np.ndarray` of shape `(T,)`): how many tokens of each prompt are padding.
    """

    repetition_penalty: float
    no_repeat_ngram_size: int
    bad_words_ids: Sequence[Sequence[int]]
    min_new_tokens: int
    eos_ids: np.ndarray
    prompts: np.ndarray
    padding: np.ndarray

    def __call__(self, scores: np.ndarray, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """
        Apply the constraints to scores, in place.

        Args:
            scores: float32 (T', C), of the next token; they are what is returned.
            rows: int64 (T',), the row of `prompts` that each text goes on from.
            tokens: int64 (T', new tokens), behind the prompts.
        """
        if self._is_free(tokens.shape[1]):
            return scores
        context = np.concatenate((self.prompts[rows], tokens), axis=1)
        if self.repetition_penalty != 1:
            self._penalize(scores, context, self.padding[rows])
        if 0 < self.no_repeat_ngram_size <= context.shape[1]:
            _forbid_ngrams(scores, context, self.no_repeat_ngram_size)
        _forbid_sequences(scores, context, self.bad_words_ids)
        if tokens.shape[1] < self.min_new_tokens:
            scores[:, self.eos_ids] = -np.inf
        return scores

    def _is_free(self, new_tokens: int) -> bool:
        is_long_enough = new_tokens >= self.min_new_tokens
        return (
            is_long_enough and self.repetition_penalty == 1 and not (self.no_repeat_ngram_size or self.bad_words_ids)
        )

    def _penalize(self, scores: np.ndarray, context: np.ndarray, padding: np.ndarray) -> None:
        texts, places = np.nonzero(np.arange(context.shape[1]) >= padding[:, None])
        texts, ids = _among(scores, texts, context[texts, places])
        found, penalty = scores[texts, ids], np.float32(self.repetition_penalty)
        scores[texts, ids] = np.where(found < 0, found * penalty, found / penalty)


def _forbid_ngrams(scores: np.ndarray, context: np.ndarray, size: int) -> None:
    """A token is forbidden where it follows what the text ends with, `size - 1` tokens."""
    followed = context.shape[1] - size + 1  # how many sequences of `size - 1` tokens a token follows
    is_ending = np.ones((len(context), followed), bool)
    for offset in range(size - 1):
        is_ending &= context[:, offset : offset + followed] == context[:, followed + offset, None]
    texts, places = is_ending.nonzero()
    scores[_among(scores, texts, context[texts, places + size - 1])] = -np.inf


def _forbid_sequences(scores: np.ndarray, context: np.ndarray, sequences: Sequence[Sequence[int]]) -> None:
    by_length: dict[int, list[Sequence[int]]] = {}
    for sequence in sequences:
        by_length.setdefault(len(sequence), []).append(sequence)
    for length, group in by_length.items():
        if length - 1 > context.shape[1]:
            continue
        forbidden = np.asarray(group, np.int64)
        ending = context[:, None, context.shape[1] + 1 - length :]
        texts, places = np.nonzero((ending == forbidden[None, :, :-1]).all(axis=-1))
        scores[_among(scores, texts, forbidden[places, -1])] = -np.inf


def _among(scores: np.ndarray, texts: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the pairs of text and token that have a score."""
    have = ids < scores.shape[1]
    return texts[have], ids[have]

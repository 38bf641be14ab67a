"""
The output layer of an export, and the tokens that it knows: all, or those of a language.

V: vocabulary, C: columns of the logits, B: images, K: concepts of all languages
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fusion_captioner.inference.runtimes import Part


class OutputLayer:
    """
    What a search chooses from: columns of logits, each of which stands for a token.

    Where the layer knows a part of the vocabulary, a prompt may hold other tokens. They have columns too, behind those
    of the logits, so that a search can compare them and never chooses them.

    Args:
        vocab_size: V.
        token_ids: the tokens of the columns, ascending; None where each token is its own column.
        part: from hidden states to logits; None where the decoder step gives the logits.
        concepts: token → its place among the probabilities of concepts, of those that add to the score of their word.
    """

    def __init__(
        self,
        vocab_size: int,
        token_ids: Sequence[int] | None = None,
        part: Part | None = None,
        concepts: Mapping[int, int] | None = None,
    ) -> None:
        known = np.asarray(range(vocab_size) if token_ids is None else token_ids, np.int64)
        self.part = part
        self.token_ids = np.concatenate((known, np.arange(vocab_size)))
        self.columns = np.arange(vocab_size) + len(known)
        self.columns[known] = np.arange(len(known))
        self.width = len(known)
        pairs = [(self.columns[token], place) for token, place in (concepts or {}).items()]
        self.concepts = np.array([pair for pair in pairs if pair[0] < self.width], np.int64).reshape(-1, 2)

    def bias(self, concepts: np.ndarray) -> np.ndarray:
        """What concepts add to the columns of their words, float32 `(B, C)`, from what each adds, `(B, K)`."""
        columns, places = self.concepts.T
        added = np.zeros((len(concepts), self.width), np.float32)
        added[:, columns] = concepts[:, places]
        return added

    def logits(self, hidden_states: np.ndarray) -> np.ndarray:
        """float32 (T, C), from what the decoder step gave."""
        return hidden_states if self.part is None else self.part((hidden_states,))[0]

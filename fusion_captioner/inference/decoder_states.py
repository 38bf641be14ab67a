"""The states of an exported decoder step, carried from token to token.

B: images, k: texts per image, T = B*k: texts, S: tokens so far, C: columns of the logits
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusion_captioner.inference.output_layer import OutputLayer
from fusion_captioner.inference.runtimes import Part

# Initial values of states. Co-attention's is a logarithm, where 0 would mean something seen already.
START_VALUES = {"fusion": -1e4}


class DecoderStates:
    """
    A batch of texts in the making.

    Args:
        step: the exported decoder step.
        states: names and shapes of its states, from the export's description.
        regions: what the image part gave, B rows each.
        texts: k.
        max_positions: the most tokens that a text may have, None without Transformer layers.
        output: the output layer, by whose columns tokens are called here.
        bias: float32 (B, C), what is added to the logits of words that a text does not have yet.
    """

    def __init__(
        self,
        step: Part,
        states: Sequence[dict[str, Any]],
        regions: Sequence[np.ndarray],
        texts: int,
        max_positions: int | None,
        output: OutputLayer,
        bias: np.ndarray | None = None,
    ) -> None:
        self.step = step
        self.output = output
        self.bias = None if bias is None else bias[:, None].repeat(texts, axis=1)
        self.regions = list(regions)
        self.max_positions = max_positions
        images = len(regions[0])
        sizes = {"images": images, "texts": texts, "past": 0}
        self.states = [
            np.full(
                [sizes.get(size, size) for size in state["shape"]],
                START_VALUES.get(state["name"].split("_")[0], 0),
                np.float32,
            )
            for state in states
        ]
        self.mask = np.zeros((images, texts, 0), np.int64)

    @property
    def images(self) -> int:
        """B."""
        return len(self.mask)

    def read(self, columns: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
        """
        Reads a token of each text.

        Args:
            columns: int64 (T,), of the tokens.
            seen: int64 (T,), 0 where the token is padding, which leaves the states as they are.

        Returns:
            what the step gives for the output layer.

        Raises:
            ValueError: if Transformer layers have no position for a further token.
        """
        tokens = self.output.token_ids[columns].reshape(self.mask.shape[:2])
        before, is_seen = self.states, None if seen is None else seen.reshape(tokens.shape) != 0
        if self.max_positions is None:
            hidden_states, *self.states = self.step((tokens, *self.regions, *before))
            if is_seen is not None and not is_seen.all():
                self.states = [
                    np.where(is_seen.reshape(*is_seen.shape, *(1,) * (new.ndim - 2)), new, old)
                    for new, old in zip(self.states, before)
                ]
        else:
            # the step itself leaves the states at padding: those of Transformer layers grow with each token
            mask = np.ones((*tokens.shape, 1), np.int64) if is_seen is None else is_seen[..., None].astype(np.int64)
            mask = np.concatenate((self.mask, mask), axis=2)
            if mask.shape[2] > self.max_positions:
                raise ValueError(
                    f"a text of {mask.shape[2]} tokens is longer than `max_position_embeddings` "
                    f"({self.max_positions}); shorten it, or train with a larger `max_position_embeddings`."
                )
            self.mask = mask
            hidden_states, *self.states = self.step((tokens, mask, *self.regions, *before))
        if self.bias is not None:
            bias = self.bias.reshape(len(columns), -1)
            known = columns < self.output.width
            bias[known, columns[known]] = 0
        return hidden_states

    def score(self, hidden_states: np.ndarray) -> np.ndarray:
        """Logits of the next token, float32 (T, C), from what the last [`read`] gave."""
        logits = self.output.logits(hidden_states)
        if self.bias is not None:
            logits += self.bias.reshape(logits.shape)
        return logits

    def advance(self, columns: np.ndarray) -> np.ndarray:
        """Reads a token of each text and scores the next: int64 (T,) → float32 (T, C)."""
        return self.score(self.read(columns))

    def repeat(self, times: int) -> None:
        """Repeat each text `times` times; the copies are adjacent."""
        self.states = [state.repeat(times, axis=1) for state in self.states]
        if self.bias is not None:
            self.bias = self.bias.repeat(times, axis=1)
        self.mask = self.mask.repeat(times, axis=1)

    def keep(self, images: np.ndarray) -> None:
        """Keep some of the images only: bool (B,), True for those. Later calls are about their texts."""
        self.regions = [region[images] for region in self.regions]
        self.states = [state[images] for state in self.states]
        self.mask = self.mask[images]
        if self.bias is not None:
            self.bias = self.bias[images]

    def reorder(self, order: np.ndarray) -> None:
        """Give text `i` the state of text `order[i]`, which is of the same image."""
        self.states = [state.reshape(-1, *state.shape[2:])[order].reshape(state.shape) for state in self.states]
        if self.bias is not None:
            self.bias = self.bias.reshape(-1, self.bias.shape[-1])[order].reshape(self.bias.shape)

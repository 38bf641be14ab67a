"""The states of an exported decoder step, carried from token to token.

B: images, k: texts per image, T = B*k: texts, S: tokens so far, V: vocabulary
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

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
    """

    def __init__(
        self,
        step: Part,
        states: Sequence[dict[str, Any]],
        regions: Sequence[np.ndarray],
        texts: int,
        max_positions: int | None,
    ) -> None:
        self.step = step
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

    def advance(self, token_ids: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
        """
        Reads a token of each text.

        Args:
            token_ids: int64 (T,).
            seen: int64 (T,), 0 where the token is padding, which leaves the states as they are.

        Returns:
            float32 (T, V): logits of the next token.

        Raises:
            ValueError: if Transformer layers have no position for a further token.
        """
        images, texts = self.mask.shape[:2]
        seen = np.ones_like(token_ids) if seen is None else seen
        mask = seen.reshape(images, texts, 1)
        if self.max_positions is not None:
            mask = np.concatenate((self.mask, mask), axis=2)
            if mask.shape[2] > self.max_positions:
                raise ValueError(
                    f"a text of {mask.shape[2]} tokens is longer than `max_position_embeddings` "
                    f"({self.max_positions}); shorten it, or train with a larger `max_position_embeddings`."
                )
            self.mask = mask
        inputs = (token_ids.reshape(images, texts), mask, *self.regions, *self.states)
        logits, *self.states = self.step(inputs)
        return logits.reshape(images * texts, -1)  # exports of earlier versions give (B, k, V)

    def repeat(self, times: int) -> None:
        """Repeat each text `times` times; the copies are adjacent."""
        self.states = [state.repeat(times, axis=1) for state in self.states]
        self.mask = self.mask.repeat(times, axis=1)

    def keep(self, images: np.ndarray) -> None:
        """Keep some of the images only: bool (B,), True for those. Later calls are about their texts."""
        self.regions = [region[images] for region in self.regions]
        self.states = [state[images] for state in self.states]
        self.mask = self.mask[images]

    def reorder(self, order: np.ndarray) -> None:
        """Give text `i` the state of text `order[i]`, which is of the same image."""
        self.states = [state.reshape(-1, *state.shape[2:])[order].reshape(state.shape) for state in self.states]

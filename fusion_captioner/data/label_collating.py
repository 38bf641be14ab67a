"""Labelled rows to batches.

B: rows, L: tokens, C: labels
"""

from collections.abc import Sequence

import torch

from fusion_captioner.data.modality_collating import ModalityCollator, Row


class LabelCollator(ModalityCollator):
    """
    Batches to learn labels from: `pixel_values` (B, 3, H, W) or `image_hidden_states` (B, P, Dv), and `input_ids` and
    `attention_mask` (B, L) of `text`, whichever the model is given; `labels` (B,), of several a row (B, C).

    Texts that are longer than the processor's tokenizer allows lose their end. Arguments as of [`ModalityCollator`].
    """

    def _texts(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        texts = [row["text"] for row in rows]
        return dict(self.processor(text=texts, add_eos=True, truncation=True, return_tensors="pt"))

"""Questions with choices to batches.

B: questions, N: choices, L: tokens, F: frames, P: regions, Dv: width of a region
"""

from collections.abc import Sequence
from typing import Any

import torch

from fusion_captioner.data.annotated_images import bad_image_error
from fusion_captioner.data.image_files import open_image
from fusion_captioner.data.modality_collating import ModalityCollator, Row


class ChoiceCollator(ModalityCollator):
    """
    Batches to learn right choices from: where images are given `pixel_values` (B, 3, H, W), of frames (B, F, 3, H, W),
    or `image_hidden_states` (B, P, Dv), of frames (B, F, P, Dv); `input_ids` and `attention_mask` (B, N, L) of `question`
    and `choices`; `labels` (B,).

    A question that is longer than the processor's tokenizer allows is an error, and so is a frame that cannot be
    decoded, `skip_bad_images` or not. Arguments as of [`ModalityCollator`].
    """

    def _images(self, rows: Sequence[Row]) -> tuple[list[Any], dict[str, torch.Tensor]]:
        if "frames" not in rows[0]:
            return super()._images(rows)
        try:
            videos = [
                [
                    open_image(frame, frame_id, self.processor.image_processor)
                    for frame, frame_id in zip(row["frames"], row["frame_ids"], strict=True)
                ]
                for row in rows
            ]
        except (OSError, ValueError) as error:
            raise bad_image_error(error) from error
        return list(rows), {"pixel_values": self.processor(images=videos, return_tensors="pt")["pixel_values"]}

    def _texts(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        questions, choices = [row["question"] for row in rows], [row["choices"] for row in rows]
        return dict(self.processor(text=questions, choices=choices, return_tensors="pt"))

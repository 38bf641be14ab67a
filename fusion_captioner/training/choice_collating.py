"""Questions with choices to batches.

B: questions, N: choices, L: tokens, F: frames, P: regions, Dv: width of a region
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from fusion_captioner.training.annotated_images import bad_image_error
from fusion_captioner.training.collating import ImageCollator
from fusion_captioner.training.image_files import open_image
from fusion_captioner.training.row_arguments import MODALITIES


class ChoiceCollator(ImageCollator):
    """Batches to learn right choices from.

    Args:
        processor: a `FusionCaptionerProcessor`.
        modalities: what the model is given: `text` is question and choices, `image` the image or the frames.
        skip_bad_images: leave an image that cannot be decoded out of its batch, with a warning, instead of raising; of
            frames it is an error all the same.
    """

    def __init__(
        self, processor: Any, modalities: Collection[str] = MODALITIES, skip_bad_images: bool = False
    ) -> None:
        super().__init__(processor, skip_bad_images=skip_bad_images)
        self.modalities = modalities

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: of a [`~fusion_captioner.training.row_dataset.RowDataset`], with `question`, `choices` and `label`.

        Returns:
            where images are given `pixel_values` (B, 3, H, W), of frames (B, F, 3, H, W), or `image_hidden_states`
            (B, P, Dv), of frames (B, F, P, Dv); `input_ids` and `attention_mask` (B, N, L); `labels` (B,); and `rows`
            (B,), their numbers.

        Raises:
            FileNotFoundError, OSError, ValueError: an image cannot be decoded, or none of the batch; a question that is
                longer than the tokenizer allows.
        """
        if "image" not in self.modalities:
            kept, batch = list(rows), {}
        elif "frames" in rows[0]:
            kept, batch = list(rows), {"pixel_values": self._frames(rows)}
        else:
            kept, batch = self._images(rows)
        questions, choices = [row["question"] for row in kept], [row["choices"] for row in kept]
        return (
            batch
            | dict(self.processor(text=questions, choices=choices, return_tensors="pt"))
            | {
                "labels": torch.tensor([row["label"] for row in kept]),
                "rows": torch.tensor([row["row"] for row in kept]),
            }
        )

    def _frames(self, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
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
        return self.processor(images=videos, return_tensors="pt")["pixel_values"]

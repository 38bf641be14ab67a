"""`RetrievalTrainer`: the two towers and the matching score are trained on captions, and evaluated by recall."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers.trainer_utils import EvalLoopOutput

from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import ImageCollator
from fusion_captioner.evaluation.retrieval_scores import retrieval_scores
from fusion_captioner.image_text_retrieval import FusionCaptionerForImageTextRetrieval
from fusion_captioner.training.head_trainer import HeadTrainer
from fusion_captioner.training.training_arguments import RetrievalTrainingArguments


class RetrievalCollator(ImageCollator):
    """Batches of images with k captions each, to be told from each other.

    Args:
        processor: a `FusionCaptionerProcessor`; captions that are longer than its tokenizer allows lose their end.
        skip_bad_images: leave an image that cannot be decoded out of its batch, with a warning, instead of raising.
    """

    def __init__(self, processor: Any, skip_bad_images: bool = False) -> None:
        super().__init__(processor, skip_bad_images=skip_bad_images)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: of a [`~fusion_captioner.data.caption_sampling.CaptionDataset`], k captions each.

        Returns:
            `pixel_values` (B, 3, H, W) or `image_hidden_states` (B, P, Dv), `input_ids` and `attention_mask` (B·k, L),
            and `return_loss`.

        Raises:
            FileNotFoundError, OSError, ValueError: an image cannot be decoded, or none of the batch.
        """
        kept, batch = self._images(rows)
        captions = [caption for row in kept for caption in row["captions"]]
        texts = self.processor(text=captions, add_eos=True, truncation=True, return_tensors="pt")
        return batch | dict(texts) | {"return_loss": True}


class RetrievalTrainer(HeadTrainer):
    """
    [`HeadTrainer`] for `FusionCaptionerForImageTextRetrieval`. Evaluation ranks all captions of all images of the split,
    in every process alike.

    Args:
        args (`RetrievalTrainingArguments`).
        train_dataset, eval_dataset (`CaptionDataset`).
        The rest as for `HeadTrainer`.
    """

    args: RetrievalTrainingArguments
    model: FusionCaptionerForImageTextRetrieval

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.scores: dict[str, float] = {}

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Recall, both ways; no loss, which depends on what is in a batch."""
        data: CaptionDataset = dataloader.dataset
        with self.averaged_weights():
            self.scores = retrieval_scores(
                self.accelerator.unwrap_model(self.model),
                self.processing_class,
                data.rows,
                data.features if data.reads_features else None,
                batch_size=self.args.eval_batch_size,
                candidates=self.args.rerank_candidates,
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.scores.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=len(data.rows))

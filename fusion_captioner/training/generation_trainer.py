"""`GenerationTrainer`: training and evaluation of a captioner that continues the prompts of its rows.

B: rows, L: tokens, P: regions, Dv: width of a region
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from huggingface_hub import ModelCard

from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import CaptionCollator
from fusion_captioner.data.prompted_texts import CAPTION
from fusion_captioner.evaluation.generated_captions import generate_texts
from fusion_captioner.metrics.answers import answer_scores
from fusion_captioner.metrics.caption_scores import score_captions
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.training.head_card import ANSWER_CARD, TEXT_CARD, build_head_card
from fusion_captioner.training.trainer import FusionCaptionerTrainer
from fusion_captioner.training.training_arguments import GenerationTrainingArguments

# Modalities that evaluation hides, by the setting's name, which stands before its scores; first everything is shown.
QUESTION_SETTINGS: dict[str, Collection[str]] = {"": (), "question_only": ("image",)}
TEXT_SETTINGS: dict[str, Collection[str]] = {"": (), "image_only": ("text",), "text_only": ("image",)}


class PromptCollator(CaptionCollator):
    """[`CaptionCollator`], which may leave the images out.

    Args:
        processor: a `FusionCaptionerProcessor`.
        without_images: the model whose `hidden_image` stands in place of every image; None: images are shown.
        skip_bad_images: leave an image that cannot be decoded out of its batch, with a warning, instead of raising.
    """

    def __init__(
        self,
        processor: Any,
        without_images: FusionCaptionerForConditionalGeneration | None = None,
        skip_bad_images: bool = False,
    ) -> None:
        super().__init__(processor, skip_bad_images=skip_bad_images)
        self.hidden_image = None if without_images is None else without_images.hidden_image(1).cpu()

    def _images(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], dict[str, torch.Tensor]]:
        if self.hidden_image is None:
            return super()._images(rows)
        return list(rows), {"image_hidden_states": self.hidden_image.expand(len(rows), -1, -1)}


class GenerationTrainer(FusionCaptionerTrainer):
    """
    [`FusionCaptionerTrainer`] of rows with prompts: what is generated from each is scored as an answer, or as a text;
    captions, of the rows that ask for them, apart.

    Args:
        args (`GenerationTrainingArguments`).
        settings: what evaluation hides; one of those above, or the same modalities always.
        asks: whether prompts are questions, scored by exact match and token-F1, or else by BLEU and ROUGE-L.
        The rest as for `FusionCaptionerTrainer`.
    """

    args: GenerationTrainingArguments

    def __init__(self, *arguments: Any, settings: Mapping[str, Collection[str]], asks: bool, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.settings = settings
        self.asks = asks
        self.scores: dict[str, dict[str, float]] = {}
        self.evaluated_texts: list[dict[str, str]] = []

    def build_card(self, **metadata: Any) -> ModelCard:
        return build_head_card(self, ANSWER_CARD if self.asks else TEXT_CARD, **metadata)

    def _score(self, dataset: CaptionDataset) -> dict[str, float]:
        kinds, references = dataset.rows["kind"], dataset.rows["captions"]
        asked = [number for number, kind in enumerate(kinds) if kind != CAPTION]
        self.scores = {}
        for setting, hidden in self.settings.items():
            texts = self._generate(dataset, asked, hidden)
            generated = list(texts.values())
            if self.asks:
                right = [references[number][0] for number in texts]
                self.scores[setting] = answer_scores(generated, right, [kinds[number] for number in texts])
            else:
                of_texts = score_captions(
                    generated, [references[number] for number in texts], metrics=("BLEU", "ROUGE-L")
                )
                self.score_signature = of_texts.pop("signature")
                self.scores[setting] = of_texts
            if not setting:
                prompts = dataset.rows["prompt"]
                self.evaluated_texts = [
                    {"prompt": prompts[number], "generated": text, "right": references[number][0]}
                    for number, text in texts.items()
                ]
        if len(asked) < len(kinds):
            captions = self._generate(dataset, [number for number, kind in enumerate(kinds) if kind == CAPTION])
            of_captions = score_captions(list(captions.values()), [references[number] for number in captions])
            self.score_signature = of_captions.pop("signature")
            self.scores["captions"] = of_captions
        return {
            f"{setting}_{name}" if setting else name: value
            for setting, scores in self.scores.items()
            for name, value in scores.items()
        }

    def _generate(
        self, dataset: CaptionDataset, numbers: Sequence[int], hidden: Collection[str] = ()
    ) -> dict[int, str]:
        """Texts by the number of the row, by the captioner's own settings."""
        rows = dataset.rows.select(numbers)
        collator = self.data_collator
        texts = generate_texts(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            rows,
            [""] * len(rows) if "text" in hidden else rows["prompt"],
            dataset.features if dataset.reads_features else None,
            hides_images="image" in hidden,
            batch_size=self.args.eval_batch_size,
            show_progress=not self.args.disable_tqdm and self.is_world_process_zero(),
            skip_bad_images=isinstance(collator, CaptionCollator) and collator.skip_bad_images,
        )
        return {numbers[place]: text for place, text in texts.items()}

"""
Classification head: a label for an image, a text, a sound, or any of them together.

B: rows, L: tokens, C: labels
"""

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration_fusion_captioner import FusionCaptionerConfig
from .losses import ProblemType, classification_loss
from .modeling_outputs import returns_output
from .optional_modalities import OptionalModalitiesModel, classification_layers


class FusionCaptionerForSequenceClassification(OptionalModalitiesModel):
    """
    A label, several labels or a number for each row. `problem_type` says which, as for the heads of transformers. If
    it is not set, it becomes `"regression"` with `num_labels` 1, `"single_label_classification"` with integer
    `labels`, and `"multi_label_classification"` otherwise.

    Example:

        >>> inputs = processor(images=photos, text=tweets, return_tensors="pt")
        >>> [model.config.id2label[int(number)] for number in model(**inputs).logits.argmax(dim=1)]
        ['positive', 'neutral']
    """

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__(config)
        # labels are often set on a config that exists, as by `from_pretrained(..., num_labels=3)`
        config.validate_architecture()
        self.classifier = classification_layers(config, config.num_labels)  # type: ignore[arg-type]  # set by now
        self.post_init()

    @returns_output
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_audio: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*): a row of padding alone has no
                text.
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)` or `(B, F, 3, H, W)`, *optional*), or
            image_hidden_states (`torch.FloatTensor` of shape `(B, P, Dv)` or `(B, F, P, Dv)`).
            input_features (`torch.FloatTensor` with B rows, *optional*): sounds, as the audio encoder takes them.
            has_image, has_audio (`torch.BoolTensor` of shape `(B,)`, *optional*): False for rows without one.
            labels: `(B,)` class numbers, -100 where there is none; `(B, C)` of 0 and 1 for several labels per row; or
                `(B,)`, for C above 1 `(B, C)`, values for regression.

        Raises:
            ValueError: if a row has no modality at all, or `labels` do not fit `problem_type` and `num_labels`.
        """
        state, attentions, hidden_states = self.fuse(
            input_ids,
            attention_mask,
            pixel_values,
            image_hidden_states,
            input_features,
            has_image,
            has_audio,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.classifier(state)
        loss = None
        if labels is not None:
            problem_type = self.config.problem_type or self._infer_problem_type(labels)
            self._check_labels(labels, logits, problem_type)
            self.config.problem_type = problem_type  # which pipelines go by
            class_weights = self.config.class_weights
            if class_weights is not None:
                class_weights = torch.tensor(class_weights, dtype=torch.float32, device=logits.device)
            loss = classification_loss(logits, labels, problem_type, class_weights)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)

    def _infer_problem_type(self, labels: torch.Tensor) -> ProblemType:
        if self.config.num_labels == 1:
            return "regression"
        is_class = labels.dtype in (torch.long, torch.int)
        return "single_label_classification" if is_class else "multi_label_classification"

    @staticmethod
    def _check_labels(labels: torch.Tensor, logits: torch.Tensor, problem_type: ProblemType) -> None:
        rows, num_labels = logits.shape
        shapes: list[tuple[int, ...]] = [(rows, num_labels)]
        if problem_type == "single_label_classification":
            shapes = [(rows,)]
        elif problem_type == "regression" and num_labels == 1:
            shapes.append((rows,))
        if tuple(labels.shape) not in shapes:
            raise ValueError(
                f"`labels` {tuple(labels.shape)} must have the shape {shapes[-1]} for `problem_type` {problem_type!r} "
                f"with {num_labels} labels; change their shape, or the config's `problem_type`."
            )
        if problem_type == "single_label_classification" and labels.is_floating_point():
            raise ValueError(
                f"`labels` ({labels.dtype}) must be whole numbers for `problem_type` {problem_type!r}; convert them "
                "by `labels.long()`, or change the config's `problem_type`."
            )
        # as for token ids: on a GPU the check would stall the device, which reports the label by an assertion of its
        # own
        if problem_type == "regression" or labels.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if problem_type == "single_label_classification":
            wrong = labels[((labels < 0) & (labels != -100)) | (labels >= num_labels)]
            fix = (
                f"must be from 0 to {num_labels - 1}, or -100 for none; correct it, or raise the config's `num_labels`"
            )
        else:
            wrong = labels[~((labels >= 0) & (labels <= 1))]
            fix = "must be from 0 to 1 with several labels a row; correct it, or change the config's `problem_type`"
        if len(wrong):
            raise ValueError(f"label {wrong[0].item()} in `labels` {fix}.")


__all__ = ["FusionCaptionerForSequenceClassification"]

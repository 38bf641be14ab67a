"""transformers' common model tests, on every model class in three variants.

B: images, L: tokens, P: regions
"""

import unittest
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from common_tests import load
from tiny_models import VISION_CONFIGS, tiny_config, tokens

from fusion_captioner import (
    FusionCaptionerConfig,
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerForImageTextRetrieval,
    FusionCaptionerForMultipleChoice,
    FusionCaptionerForSequenceClassification,
    FusionCaptionerModel,
)

modeling_common = load("test_modeling_common")
ModelTesterMixin = modeling_common.ModelTesterMixin
ConfigTester = load("test_configuration_common").ConfigTester

VARIANTS = {
    "ResNetLSTMAttention": {"fusion_type": "attention"},
    "ViTTransformerCoAttention": {
        "vision_config": {"model_type": "vit", **VISION_CONFIGS["vit"]},
        "text_encoder_type": "transformer",
        "decoder_type": "transformer",
        "fusion_type": "co_attention",
    },
    "EfficientNetGRUSum": {
        "vision_config": {"model_type": "efficientnet", **VISION_CONFIGS["efficientnet"]},
        "text_encoder_type": "gru",
        "decoder_type": "gru",
        "fusion_type": "sum",
    },
}
HEADS = {
    "Model": FusionCaptionerModel,
    "ConditionalGeneration": FusionCaptionerForConditionalGeneration,
    "ImageTextRetrieval": FusionCaptionerForImageTextRetrieval,
    "MultipleChoice": FusionCaptionerForMultipleChoice,
    "SequenceClassification": FusionCaptionerForSequenceClassification,
}
FIELDS: dict[str, dict[str, Any]] = {
    "ImageTextRetrieval": {"contrastive_loss_weight": 1.0, "matching_loss_weight": 1.0},
    "SequenceClassification": {"num_labels": 3},
}
BATCH, LENGTH, CHOICES = 3, 6, 4
# regions of the tiny images
REGIONS = 16
# layers that `output_hidden_states` returns: text states, joint representations, decoder states
HIDDEN_STATES = {"Model": 2, "ConditionalGeneration": 3, "ImageTextRetrieval": 1}
# what the tests set on any config, whether its model has such layers or not: this package's config refuses it
MIXTURE_OF_EXPERTS = ("first_k_dense_replace", "moe_layer_start_index", "mlp_only_layers", "num_dense_layers")
set_field = FusionCaptionerConfig.__setattr__


def calm_norms(config: FusionCaptionerConfig) -> None:
    """As `set_config_for_less_flaky_test`, but only fields that the config has."""
    for name in ("layer_norm_eps", "layer_norm_epsilon", "batch_norm_eps"):
        if hasattr(config.vision_config, name):
            setattr(config.vision_config, name, 1.0)


modeling_common.set_config_for_less_flaky_test = calm_norms


class FusionCaptionerTester:
    """What the common tests ask of a model: its config, inputs, and the sizes of its outputs."""

    batch_size = BATCH
    seq_length = encoder_seq_length = LENGTH
    num_choices = CHOICES
    key_length = REGIONS

    def __init__(self, head: str, fields: dict[str, Any]) -> None:
        self.head = head
        self.fields = fields | FIELDS.get(head, {})
        config = self.get_config()
        self.hidden_size, self.num_attention_heads = config.hidden_size, config.num_attention_heads
        self.num_hidden_layers = config.num_hidden_layers
        self.expected_num_hidden_layers = HIDDEN_STATES.get(head, self.num_hidden_layers + 1)
        # the base model has no loss
        self.is_training = head != "Model"

    def get_config(self) -> FusionCaptionerConfig:
        return tiny_config(**self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[FusionCaptionerConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        # oneDNN crashes on gradients of convolutions as narrow as these at 224 pixels, ResNet's usual size
        side = getattr(config.vision_config, "image_size", 32)
        rows = (BATCH, CHOICES) if self.head == "MultipleChoice" else (BATCH,)
        input_ids = tokens(BATCH * (CHOICES if len(rows) == 2 else 1), LENGTH).view(*rows, LENGTH)
        images = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": images,
        }


class FusionCaptionerTests(ModelTesterMixin):
    """The common tests of one class in one variant."""

    head: str
    variant: str
    is_encoder_decoder = False
    test_resize_embeddings = True
    _is_composite = True
    additional_model_inputs = ["pixel_values"]  # noqa: RUF012 (transformers' own form)
    # every class holds the base model whole: its projections into the space shared by images and texts are trained by
    # the contrastive loss alone, and a ViT's pooler by nothing
    test_all_params_have_gradient = False
    # configs of CNNs do not name the width of their regions; `tests/test_modeling_fusion_captioner.py` holds it
    skip_test_image_features_output_shape = True

    def setUp(self) -> None:
        self.model_tester = FusionCaptionerTester(self.head, VARIANTS[self.variant])
        # retrieval compares two towers, which do not look at each other
        attends = VARIANTS[self.variant]["fusion_type"] in ("attention", "co_attention")
        self.has_attentions = attends and self.head != "ImageTextRetrieval"
        self.config_tester = ConfigTester(
            self, config_class=FusionCaptionerConfig, has_text_modality=True, hidden_size=16, num_attention_heads=2,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
        )  # fmt: skip

    @property
    def all_model_classes(self) -> tuple[type, ...]:
        return (HEADS[self.head],)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = {
            name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs_dict.items()
        }
        if return_labels:
            labels = {
                "ConditionalGeneration": inputs["input_ids"].clone(),
                "MultipleChoice": torch.ones(BATCH, dtype=torch.long),
                "SequenceClassification": torch.zeros(BATCH, dtype=torch.long),
            }
            if self.head in labels:
                inputs["labels"] = labels[self.head]
            elif self.head == "ImageTextRetrieval":
                inputs["return_loss"] = True
        return inputs

    def _text_features_get_expected_num_hidden_states(self, model_tester=None) -> int:
        return 2  # words and states

    def _image_features_get_expected_num_hidden_states(self, model_tester=None) -> int:
        return 1  # regions

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def test_model_outputs_equivalence(self) -> None:
        # the matching loss draws its negatives at random
        if self.head == "ImageTextRetrieval":
            self.model_tester.fields["matching_loss_weight"] = 0.0
        super().test_model_outputs_equivalence()

    def test_can_capture_specific_layers_hidden_states(self) -> None:
        # a failure within a subtest would not count as the failure that the list of what does not apply expects
        with mock.patch.object(self, "subTest", lambda *_: nullcontext()):
            super().test_can_capture_specific_layers_hidden_states()

    def test_reverse_loading_mapping(self) -> None:
        def set_known(config: FusionCaptionerConfig, name: str, value: Any) -> None:
            if name not in MIXTURE_OF_EXPERTS:
                set_field(config, name, value)

        with mock.patch.object(FusionCaptionerConfig, "__setattr__", set_known):
            super().test_reverse_loading_mapping()


for _variant in VARIANTS:
    for _head in HEADS:
        _name = f"{_variant}{_head}Test"
        globals()[_name] = type(
            _name,
            (FusionCaptionerTests, unittest.TestCase),
            {"head": _head, "variant": _variant, "__module__": __name__},
        )
del _name, _head, _variant

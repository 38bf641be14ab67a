"""Configuration of Fusion Captioner: every knob of the model, validated, so that the model can trust it."""

from collections.abc import Iterable
from copy import deepcopy
from functools import wraps
from inspect import signature
from typing import Any, ClassVar, Literal, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Keys that transformers and PEFT themselves pass to a config, set on it or read from it, beyond its own fields.
TRANSFORMERS_KEYS = {
    "aggregation_labels",
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "distributed_config",
    "experts_implementation",
    "function_to_apply",
    "fusion_config",
    "gradient_checkpointing",
    "is_causal",
    "loss_type",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "pretraining_tp",
    "quantization_config",
    "torch_dtype",
    "transformers_weights",
}
# Keys that transformers 4 stored in every config and version 5 no longer defines: configs on the Hub are full of them.
TRANSFORMERS_4_KEYS = {
    "add_cross_attention",
    "bos_token_id",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "eos_token_id",
    "finetuning_task",
    "is_decoder",
    "pad_token_id",
    "prefix",
    "pruned_heads",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "torchscript",
    "use_bfloat16",
}
# Keys that other libraries add to a model's config: compressed-tensors, optimum-neuron, transformers.js, unsloth.
OTHER_LIBRARIES_KEYS = {"compression_config", "neuron", "transformers.js_config", "unsloth_fixed", "unsloth_version"}

POSITIVE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_text_encoder_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "projection_dim",
    "bilinear_rank",
    "num_audio_regions",
    "matching_negatives",
)
PROBABILITY_FIELDS = (
    "dropout",
    "attention_dropout",
    "image_dropout",
    "word_dropout",
    "modality_dropout",
    "label_smoothing",
)
WEIGHT_FIELDS = (
    "caption_loss_weight",
    "contrastive_loss_weight",
    "adversarial_loss_weight",
    "reconstruction_loss_weight",
    "matching_loss_weight",
    "concept_loss_weight",
    "concept_bias",
    "gradient_reversal_weight",
)


def own_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    """Names of the fields that a class adds to transformers' config."""
    return set(config_class.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)


def unknown_keys(config_class: type[PreTrainedConfig], keys: Iterable[str]) -> list[str]:
    """Those of `keys` that neither `config_class` nor transformers' config machinery defines, in order."""
    known = TRANSFORMERS_KEYS | TRANSFORMERS_4_KEYS | OTHER_LIBRARIES_KEYS | set(GenerationConfig().to_dict())
    known |= set(config_class.__dataclass_fields__)
    if config_class is not FusionCaptionerConfig:
        known |= set(config_class.attribute_map) | set(signature(config_class).parameters)
    unknown = sorted(key for key in keys if key not in known and not key.startswith("_"))
    if unknown and config_class is not FusionCaptionerConfig:
        # what a class derives from its fields is saved next to them, such as `stage_names` of backbones
        derived = config_class().to_dict()
        unknown = [key for key in unknown if key not in derived]
    return unknown


def unknown_key_error(config_class: type[PreTrainedConfig], key: str, value: Any, prefix: str = "") -> ValueError:
    """The error about one of `unknown_keys`."""
    return ValueError(
        f"`{prefix}{key}` ({value!r}) is not a field of {config_class.__name__}; remove it or correct its spelling. "
        f"Fields: {', '.join(sorted(own_fields(config_class)))}."
    )


def without_unknown_keys(config: PreTrainedConfig, name: str) -> PreTrainedConfig:
    """`config`, or a copy that lacks its unknown keys: some configs on the Hub hold leftovers that no model reads (as
    Swin's `path_norm`), and what this package saves must load again."""
    unknown = unknown_keys(type(config), vars(config))
    if unknown:
        logger.warning(f"`{name}`: {', '.join(unknown)} left out; {type(config).__name__} has no such field.")
        config = deepcopy(config)
        for key in unknown:
            delattr(config, key)
    return config


C = TypeVar("C", bound=type)


def raise_value_errors(strict_class: C) -> C:
    """`@strict` reports what is wrong by an exception of two lines that is no `ValueError`; make it one, of one
    line."""

    def with_value_error(method):
        @wraps(method)
        def checked(self, *args: Any, **kwargs: Any) -> None:
            try:
                method(self, *args, **kwargs)
            except StrictDataclassError as error:
                raise ValueError(str(error.__cause__ or error)) from error

        return checked

    for name in ("__init__", "__setattr__", "validate"):
        setattr(strict_class, name, with_value_error(getattr(strict_class, name)))
    return strict_class


@raise_value_errors
@strict
class FusionCaptionerConfig(PreTrainedConfig):
    r"""
    Configuration of every Fusion Captioner model. A wrong type, a value out of range or an unknown key is an error,
    in the constructor and in `config.json`.

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            Any transformers vision backbone (ResNet-50 by default; ViT, ConvNeXt, EfficientNet, MobileNet, CLIP and
            SigLIP vision towers, ...). A `dict` names its `model_type`.
        audio_config (`PreTrainedConfig` or `dict`, *optional*):
            Any transformers audio encoder (Whisper, AST, wav2vec2, HuBERT, ...), for tasks with sound; none by
            default.
        num_audio_regions (`int`, defaults to 16): regions that a sound becomes, whatever its length.
        vocab_size (`int`, defaults to 10000): entries of the tokenizer.
        hidden_size (`int`, defaults to 512): width of token states, projected regions and joint representations.
        text_encoder_type (`"lstm"`, `"gru"`, `"transformer"` or `"embedding"`): the causal text encoder;
            `"embedding"` has no layers: each word is encoded on its own.
        num_text_encoder_layers (`int`, defaults to 1).
        normalize_text_states (`bool`, defaults to `True`): layer normalisation of a recurrent text encoder's states.
            Without it these states begin thirty times smaller than the image's part, and learning is slow.
        fusion_type (`"sum"`, `"concat"`, `"gated"`, `"bilinear"`, `"attention"` or `"co_attention"`):
            how token states and image regions become one representation, see `fusion.py`.
        bilinear_rank (`int`, defaults to 1024): rank of the factorised bilinear pooling.
        decoder_type (`"lstm"`, `"gru"` or `"transformer"`): the causal decoder over the joint representations.
        num_hidden_layers (`int`, defaults to 1): layers of the decoder.
        decoder_input (`"joint"` or `"joint_and_embedding"`): whether the decoder also reads the word embedding.
        decoder_residual (`bool`, defaults to `True`): whether a recurrent decoder's output is added to the joint
            representation that it reads, and layer-normalised. Words are scored by small states without it, and
            learned several times as late.
        num_attention_heads (`int`, defaults to 8): heads of the fusion and of Transformer layers.
        intermediate_size (`int`, defaults to 2048): width of the feed-forward part of Transformer layers.
        max_position_embeddings (`int`, defaults to 512): maximum number of tokens for Transformer layers.
        max_frames (`int`, defaults to 0): maximum number of frames of a video; 0: still images only.
        projection_dim (`int`, defaults to 256): width of `image_embeds` and `text_embeds`.
        text_pooling (`"last"` or `"mean"`): what stands for a text, in `text_embeds` and classifiers: the state of the
            last token, or the mean of all tokens' states. With `text_encoder_type` `"embedding"` it must be the mean,
            a bag of words, which is learned soonest and generalises best where captions are few.
        logit_scale_init_value (`float`, defaults to 2.6592): logarithm of the initial contrastive temperature's
            inverse.
        dropout, attention_dropout (`float`): on hidden states, and on attention weights.
        image_dropout (`float`, defaults to 0): on the image encoder's features; one mask for all regions of an image,
            as `dropout` has one for all tokens of a text.
        word_dropout (`float`, defaults to 0): share of input words that are hidden from the text encoder in training.
        modality_dropout (`float`, defaults to 0): share of training rows of which the heads for classification and
            multiple choice hide some modalities, and the captioner the image, so that what is left suffices.
        class_weights (list of `float`, *optional*): for the classification loss, one per label: weight of the class
            or, with several labels per row, of the label's positive examples.
        label_smoothing (`float`, defaults to 0.1): of the caption loss.
        caption_loss_weight, contrastive_loss_weight, adversarial_loss_weight, reconstruction_loss_weight,
        matching_loss_weight, concept_loss_weight (`float`): weight of each loss term; a term with weight 0 is neither
            built nor computed.
        contrastive_loss_type (`"info_nce"` or `"hinge"`): symmetric InfoNCE, or the hinge on the hardest negatives.
        contrastive_margin (`float`, defaults to 0.2): margin of the hinge, in cosine similarity.
        matching_type (`"fusion"` or `"word_region"`): what the matching score of a pair is read from: the fused
            states, or how near each word is to the regions that it attends to (see `matching.py`).
        matching_negatives (`int`, defaults to 1): false pairs that the matching loss draws for each true one: this
            many other images, and as many other texts.
        concept_token_ids (list of `int`, *optional*): concepts, the tokens that images are searched for: sorted, each
            once. With `languages` a list for each of them, of the words that its captions have.
        num_concepts (`int`, defaults to 0): so many of the likeliest concepts of an image become further regions.
        concept_bias (`float`, defaults to 0): what a concept that is certain adds to the score of its word until the
            text has it, and less likely ones by their probability (an output attention over attributes, as in You et
            al., 2016, section 3.4, without weights of its own).
        gradient_reversal_weight (`float`, defaults to 1): factor on the reversed gradient of the modality critic.
        initializer_range (`float`, defaults to 0.02): standard deviation of new random weights.
        languages (list of `str`, *optional*): codes of the languages, if the captioner writes several; the first
            is the default of `generate`.
        language_token_ids (list of `int`, *optional*): for each language, the token that follows BOS.

    Raises:
        ValueError: a field is wrong; the message names it, its value and the allowed values.

    Example:

        >>> from fusion_captioner import FusionCaptionerConfig
        >>> FusionCaptionerConfig(fusion_type="gated").vision_config.model_type
        'resnet'
    """

    model_type = "fusion_captioner"
    _auto_class = "AutoConfig"
    # what `Trainer` leaves out of predictions, so that they are the logits
    keys_to_ignore_at_inference = [  # noqa: RUF012 (transformers' own form)
        "loss_terms",
        "cache",
        "past_key_values",
        "hidden_states",
        "attentions",
        "logits_per_text",
        "image_embeds",
        "text_embeds",
    ]
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet"),
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    num_audio_regions: int = 16
    vocab_size: int = 10_000
    hidden_size: int = 512
    text_encoder_type: Literal["lstm", "gru", "transformer", "embedding"] = "lstm"
    num_text_encoder_layers: int = 1
    normalize_text_states: bool = True
    fusion_type: Literal["sum", "concat", "gated", "bilinear", "attention", "co_attention"] = "attention"
    bilinear_rank: int = 1024
    decoder_type: Literal["lstm", "gru", "transformer"] = "lstm"
    num_hidden_layers: int = 1
    decoder_input: Literal["joint", "joint_and_embedding"] = "joint"
    decoder_residual: bool = True
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    max_position_embeddings: int = 512
    max_frames: int = 0
    projection_dim: int = 256
    text_pooling: Literal["last", "mean"] = "last"
    logit_scale_init_value: float | int = 2.6592
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    image_dropout: float | int = 0.0
    word_dropout: float | int = 0.0
    modality_dropout: float | int = 0.0
    class_weights: list[float | int] | None = None
    label_smoothing: float | int = 0.1
    caption_loss_weight: float | int = 1.0
    contrastive_loss_weight: float | int = 0.0
    contrastive_loss_type: Literal["info_nce", "hinge"] = "info_nce"
    contrastive_margin: float | int = 0.2
    adversarial_loss_weight: float | int = 0.0
    gradient_reversal_weight: float | int = 1.0
    reconstruction_loss_weight: float | int = 0.0
    matching_loss_weight: float | int = 0.0
    matching_type: Literal["fusion", "word_region"] = "fusion"
    matching_negatives: int = 1
    concept_loss_weight: float | int = 0.0
    concept_token_ids: list[int] | list[list[int]] | None = None
    num_concepts: int = 0
    concept_bias: float | int = 0.0
    initializer_range: float | int = 0.02
    languages: list[str] | None = None
    language_token_ids: list[int] | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        if unknown := unknown_keys(type(self), kwargs):
            raise unknown_key_error(type(self), unknown[0], kwargs[unknown[0]])
        kwargs.pop("model_type", None)
        self._check_sub_config("vision_config", '"resnet", "efficientnet", "vit" or "clip_vision_model"')
        self._check_sub_config("audio_config", '"whisper", "audio-spectrogram-transformer" or "wav2vec2"')
        super().__post_init__(**kwargs)

    def _check_sub_config(self, name: str, examples: str) -> None:
        """Refuse what transformers does not know of an encoder's config in a `dict`; leave it out of a ready
        config."""
        sub_config = getattr(self, name)
        if isinstance(sub_config, PreTrainedConfig):
            setattr(self, name, without_unknown_keys(sub_config, name))
        elif isinstance(sub_config, dict):
            spec = self.sub_configs_defaults[name]
            model_type = sub_config.get("model_type", None if spec.optional else spec.model_type)
            if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"`{name}` has `model_type` {model_type!r}, which transformers does not know; give that of a "
                    f"suitable encoder, such as {examples}."
                )
            if unknown := unknown_keys(CONFIG_MAPPING[model_type], sub_config):
                raise unknown_key_error(CONFIG_MAPPING[model_type], unknown[0], sub_config[unknown[0]], f"{name}.")

    def __setattr__(self, key: str, value: Any) -> None:
        # what is set is saved, and what is saved must load again
        if not key.startswith("_") and not hasattr(type(self), key) and unknown_keys(type(self), [key]):
            raise unknown_key_error(type(self), key, value)
        super().__setattr__(key, value)

    @classmethod
    def own_fields(cls) -> set[str]:
        """Names of the fields that this class adds to transformers' config."""
        return own_fields(cls)

    @classmethod
    def plain(cls, **kwargs: Any) -> "FusionCaptionerConfig":
        """
        The plain cross-modal captioner: ResNet-50 pooled features through a linear layer to 512, an LSTM text
        encoder, fusion `ReLU(Wv·v + Wt·t)`, and an LSTM that reads the joint features and the word embedding at
        every step; the output layer has its own weights. Fields in `kwargs` override the preset.
        """
        preset: dict[str, Any] = {
            "hidden_size": 512,
            "text_encoder_type": "lstm",
            "normalize_text_states": False,
            "fusion_type": "sum",
            "decoder_type": "lstm",
            "decoder_input": "joint_and_embedding",
            "decoder_residual": False,
            "dropout": 0.0,
            "label_smoothing": 0.0,
            "tie_word_embeddings": False,
        }
        return cls(**(preset | kwargs))

    def to_dict(self) -> dict[str, Any]:
        """As transformers', less where the encoders' configs were loaded from: folders of the machine that trained."""
        document = super().to_dict()
        for name in self.sub_configs_defaults:
            if document.get(name) is not None:
                document[name]["_name_or_path"] = ""
        return document

    def validate_architecture(self) -> None:
        """Part of the `@strict` validation: ranges, and what must divide what."""
        super().validate_architecture()
        for name in self.sub_configs_defaults:
            if isinstance(sub_config := getattr(self, name), PreTrainedConfig):
                for key in unknown_keys(type(sub_config), vars(sub_config)):
                    raise unknown_key_error(type(sub_config), key, getattr(sub_config, key), f"{name}.")
        for name in POSITIVE_FIELDS:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` ({getattr(self, name)}) must be at least 1.")
        for name in PROBABILITY_FIELDS:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` ({getattr(self, name)}) must be at least 0 and below 1.")
        for name in WEIGHT_FIELDS:
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` ({getattr(self, name)}) must be 0 (off) or positive.")
        loss_weights = [name for name in WEIGHT_FIELDS if name.endswith("_loss_weight")]
        if not any(getattr(self, name) for name in loss_weights):
            raise ValueError(f"{', '.join(f'`{name}`' for name in loss_weights)} are all 0; set one of them above 0.")
        if self.initializer_range <= 0:
            raise ValueError(f"`initializer_range` ({self.initializer_range}) must be positive.")
        if self.max_frames < 0:
            raise ValueError(f"`max_frames` ({self.max_frames}) must be 0 (still images) or the number of frames.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be divisible by `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        if self.class_weights is not None:
            if len(self.class_weights) != self.num_labels:
                raise ValueError(
                    f"`class_weights` ({self.class_weights}) must hold one weight for each of the {self.num_labels} "
                    "labels (`num_labels`)."
                )
            if min(self.class_weights) < 0 or not any(self.class_weights):
                raise ValueError(f"`class_weights` ({self.class_weights}) must be 0 or positive, and one above 0.")
            if self.problem_type == "regression" or self.num_labels == 1:
                raise ValueError(
                    f"`class_weights` ({self.class_weights}) weigh classes, and regression has none; leave them out."
                )
        if len(self.languages or []) != len(self.language_token_ids or []):
            raise ValueError(
                f"`languages` ({self.languages}) must have one token each in `language_token_ids` "
                f"({self.language_token_ids})."
            )
        self._check_concepts()
        if self.matching_loss_weight and not self.contrastive_loss_weight:
            raise ValueError(
                f"`matching_loss_weight` ({self.matching_loss_weight}) draws hard negatives by image and text "
                "embeddings: set `contrastive_loss_weight` above 0 so that these are trained."
            )
        if self.text_encoder_type == "embedding" and self.text_pooling == "last":
            raise ValueError(
                '`text_pooling` ("last") would make the same of every text, as with `text_encoder_type` "embedding" '
                'the last token knows no other one; set `text_pooling` to "mean".'
            )

    @property
    def concept_ids(self) -> list[int]:
        """The concepts of all languages, sorted: token ids, in the order of the concept head's scores."""
        ids: list[Any] = self.concept_token_ids or []
        return sorted({each for of_language in ids for each in of_language}) if self.languages else ids

    def _check_concepts(self) -> None:
        if self.num_concepts < 0:
            raise ValueError(f"`num_concepts` ({self.num_concepts}) must be 0 (none) or positive.")
        if self.concept_token_ids is not None:
            lists: list[Any] = self.concept_token_ids if self.languages else [self.concept_token_ids]
            if len(lists) != len(self.languages or [0]) or not all(isinstance(ids, list) for ids in lists):
                raise ValueError(
                    f"`concept_token_ids` ({self.concept_token_ids!s:.60}) must be one list of token ids for each "
                    f"of the languages ({', '.join(self.languages or [])})."
                )
            for ids in lists:
                if any(isinstance(each, list) for each in ids):
                    raise ValueError(
                        f"`concept_token_ids` ({ids!s:.60}) must be one list of token ids, as `languages` is unset."
                    )
                if ids != sorted(set(ids)) or (ids and not 0 <= ids[0] <= ids[-1] < self.vocab_size):
                    raise ValueError(
                        f"`concept_token_ids` ({ids!s:.60}) must be sorted, each once, at least 0 and below "
                        f"`vocab_size` ({self.vocab_size})."
                    )
        count = len(self.concept_ids)
        for name in ("num_concepts", "concept_loss_weight", "concept_bias"):
            if getattr(self, name) and not count:
                raise ValueError(
                    f"`{name}` ({getattr(self, name)}) needs `concept_token_ids` ({self.concept_token_ids}); name the "
                    f"tokens that are concepts, or set `{name}` to 0."
                )
        if self.num_concepts > count:
            raise ValueError(
                f"`num_concepts` ({self.num_concepts}) must be at most the number of concepts in `concept_token_ids` "
                f"({count})."
            )


__all__ = ["FusionCaptionerConfig"]

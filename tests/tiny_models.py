"""Captioners of a few thousand weights, and inputs for them."""

import pickle
from copy import deepcopy
from functools import lru_cache
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.fusion import FUSIONS
from fusion_captioner.modeling_fusion_captioner import (
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerPreTrainedModel,
)

VOCAB_SIZE = 50
FUSION_TYPES = list(FUSIONS)
LAYER_TYPES = ["lstm", "gru", "transformer"]
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PATCHES = {"image_size": 32, "patch_size": 8}
# one backbone of each kind that the config's documentation names
VISION_CONFIGS = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [4, 6, 8, 10], "depths": [1, 1, 1, 1], "image_size": 64},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "image_size": 64},
    "mobilenet_v2": {"depth_multiplier": 0.1, "finegrained_output": False, "image_size": 64},
    "vit": TRANSFORMER | PATCHES,
    "clip_vision_model": TRANSFORMER | PATCHES,
    "siglip_vision_model": TRANSFORMER | PATCHES,
}
# encoders of each of the two kinds of input: log-mel spectrograms and waveforms
AUDIO_CONFIGS = {
    "whisper": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_mel_bins": 16,
        "max_source_positions": 50,
        "vocab_size": 10,
        "max_target_positions": 4,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    },
    "audio-spectrogram-transformer": TRANSFORMER
    | {"num_mel_bins": 16, "max_length": 100, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
    "wav2vec2": TRANSFORMER
    | {
        "conv_dim": [8, 8],
        "conv_kernel": [10, 8],
        "conv_stride": [10, 8],
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    },
}
# of a model that searches images for some of its words
CONCEPTS = {"concept_token_ids": [*range(5, 45, 3)], "num_concepts": 3, "concept_loss_weight": 1.0}
Head = TypeVar("Head", bound=FusionCaptionerPreTrainedModel)


def tiny_config(**fields) -> FusionCaptionerConfig:
    """Weights are drawn large, so that what a test compares differs by more than rounding."""
    defaults = {
        "vision_config": {"model_type": "resnet", **VISION_CONFIGS["resnet"]},
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "bilinear_rank": 24,
        "projection_dim": 8,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
        "dropout": 0.0,
    }
    return FusionCaptionerConfig(**(defaults | fields))


def randomize(module: torch.nn.Module, seed: int = 0, scale: float = 0.1) -> None:
    """Move every parameter: biases drawn as 0 and norms drawn as the identity would hide a formula without them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=scale)


def calibrate(module: torch.nn.Module, pixel_values: torch.Tensor) -> None:
    """Give BatchNorm the statistics of these pictures, as training would: with those that it begins with, deep CNNs
    let the pictures vanish or explode."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(pixel_values)
    module.eval()


@lru_cache(maxsize=100)
def made_head(head: type[Head], fields: bytes) -> tuple[Head, torch.Tensor]:
    """The model that `tiny_head` copies, and the state of torch's generator after it."""
    torch.manual_seed(0)
    model = head(tiny_config(**pickle.loads(fields))).eval()
    randomize(model)
    return model, torch.get_rng_state()


def tiny_head(head: type[Head], **fields) -> Head:
    """A model of this class in evaluation mode, the same at every call; a copy, which takes a quarter of the time."""
    model, state = made_head(head, pickle.dumps(fields))
    torch.set_rng_state(state)
    return deepcopy(model)


def tiny_model(**fields) -> FusionCaptionerForConditionalGeneration:
    """A captioner in evaluation mode, the same at every call."""
    return tiny_head(FusionCaptionerForConditionalGeneration, **fields)


def pixels(number: int = 2, *frames: int, seed: int = 0, size: int = 32) -> torch.Tensor:
    """`(number, [frames,] 3, size, size)`"""
    return torch.randn(number, *frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tokens(rows: int = 2, length: int = 6, seed: int = 0) -> torch.Tensor:
    """Random words `(rows, length)`, no special tokens among them."""
    return torch.randint(3, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """As many words as the tiny models have tokens, named `w3`, `w4`, ... by their ids."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, VOCAB_SIZE)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def audio_config(audio_type: str = "whisper") -> dict:
    """A tiny audio encoder's config."""
    return {"model_type": audio_type, **AUDIO_CONFIGS[audio_type]}


def sounds(*frequencies: float) -> torch.Tensor:
    """A second of a sine wave of each frequency, at 16 kHz: `(sounds, 16000)`."""
    time = torch.arange(16000) / 16000
    return torch.stack([torch.sin(2 * torch.pi * frequency * time) for frequency in frequencies])


def log_mel(waves: torch.Tensor) -> torch.Tensor:
    """What Whisper's feature extractor makes of sounds, for the tiny Whisper: `(sounds, 16, 100)`."""
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    return extractor(list(waves.numpy()), sampling_rate=16000, return_tensors="pt")["input_features"]

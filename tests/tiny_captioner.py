"""A captioner of a few thousand weights, its processor, and tiny images in the columns of a caption data set."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, ResNetConfig

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.caption_folder import FEATURES
from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "green", "blue", "square", "it", "is", "picture", "of", ":"]


def tiny_processor() -> FusionCaptionerProcessor:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return FusionCaptionerProcessor(FusionCaptionerImageProcessor(size={"height": 32, "width": 32}), fast)


def tiny_model(**fields) -> FusionCaptionerForConditionalGeneration:
    defaults = {
        "vision_config": ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_attention_heads": 2,
        "projection_dim": 8,
        "dropout": 0.0,
    }
    return FusionCaptionerForConditionalGeneration(FusionCaptionerConfig(**(defaults | fields)))


def noise(path: Path, seed: int, size: tuple[int, int] = (20, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


def caption_rows(folder: Path, number: int, captions: int = 3, first_seed: int = 0) -> datasets.Dataset:
    """`number` images of noise with `captions` captions each."""
    rows = [
        {
            "image": {"path": str(noise(folder / f"{index}.png", first_seed + index)), "bytes": None},
            "captions": [f"a {WORDS[5 + k % 3]} square {k} {index}" for k in range(captions)],
            "image_id": f"{folder.name}-{index}",
        }
        for index in range(number)
    ]
    return datasets.Dataset.from_list(rows, features=FEATURES)

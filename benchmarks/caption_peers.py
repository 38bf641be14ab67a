"""transformers' small image captioners, with random weights of the published sizes: speed does not depend on the
values.

Nothing is downloaded. Tokenizers are made up, of the published size; turning 15 tokens into words takes no time to
speak of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

# of the models that only show that the benchmark works
TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_VISION = TINY | {"image_size": 32}


@dataclass
class Peer:
    """
    Args:
        model_class, config: what is built.
        image_processor: with Pillow, as in this package.
        vision_part: name of the module whose time is that of the image encoder.
        vocab_size: of the tokenizer.
    """

    model_class: Any
    config: Any
    image_processor: Any
    vision_part: str
    vocab_size: int

    def build(self, dtype: torch.dtype) -> Any:
        """The model, its weights drawn at random."""
        return self.model_class._from_config(self.config, dtype=dtype).eval()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        words = Tokenizer(WordLevel({f"w{number}": number for number in range(self.vocab_size)}, unk_token="w0"))
        return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


def blip_base(tiny: bool) -> Peer:
    """Salesforce/blip-image-captioning-base."""
    text = TINY | {"projection_dim": 32} if tiny else {"num_attention_heads": 12}
    config = BlipConfig(vision_config=TINY_VISION if tiny else {}, text_config=text)
    side = config.vision_config.image_size
    return Peer(
        BlipForConditionalGeneration,
        config,
        BlipImageProcessorPil(size={"height": side, "width": side}),
        "vision_model",
        config.text_config.vocab_size,
    )


def git_base(tiny: bool) -> Peer:
    """microsoft/git-base."""
    config = GitConfig(vision_config=TINY_VISION if tiny else {}, **(TINY if tiny else {}))
    side = config.vision_config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return Peer(GitForCausalLM, config, processor, "git.image_encoder", config.vocab_size)


def vit_gpt2(tiny: bool) -> Peer:
    """nlpconnect/vit-gpt2-image-captioning."""
    vision = ViTConfig(**(TINY_VISION if tiny else {}))
    text = GPT2Config(**({"n_embd": 32, "n_layer": 1, "n_head": 2} if tiny else {}))
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id = config.decoder.bos_token_id
    config.pad_token_id = config.decoder.eos_token_id
    config.eos_token_id = config.decoder.eos_token_id
    side = vision.image_size
    processor = ViTImageProcessorPil(size={"height": side, "width": side})
    return Peer(VisionEncoderDecoderModel, config, processor, "encoder", text.vocab_size)


PEERS: dict[str, Callable[[bool], Peer]] = {"BLIP-base": blip_base, "GIT-base": git_base, "ViT-GPT2": vit_gpt2}

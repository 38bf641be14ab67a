"""
Audio encoder: any transformers audio encoder, its output brought to a fixed number of regions.

B: batch, S: steps of the encoder, A: regions of a sound, Da: width of a region
"""

from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig

from .placed_weights import compute_dtype

AUDIO_INPUTS = ("input_features", "input_values")


class AudioEncoder(nn.Module):
    """
    An audio encoder built from its own config; of an encoder-decoder such as Whisper the encoder alone.

    Its steps are averaged to `num_regions` stretches of equal length. A sound of thirty seconds is 1,500 steps for
    Whisper, next to some fifty regions of an image: fusions that average over regions would see the sound alone.
    """

    def __init__(self, audio_config: PreTrainedConfig, num_regions: int) -> None:
        super().__init__()
        encoder: Any = (
            AutoModel.from_config(audio_config, trust_remote_code=False)
            if type(audio_config) in MODEL_MAPPING
            else None
        )
        if encoder is not None and audio_config.is_encoder_decoder:
            encoder = encoder.get_encoder()
        if getattr(encoder, "main_input_name", None) not in AUDIO_INPUTS or not hasattr(audio_config, "hidden_size"):
            raise ValueError(
                f"`audio_config` of type {audio_config.model_type!r} does not build an audio encoder; give the config "
                "of one, such as WhisperConfig, ASTConfig or Wav2Vec2Config."
            )
        self.encoder = encoder
        self.num_regions = num_regions
        self.hidden_size = audio_config.hidden_size

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input_features (`torch.FloatTensor` with B rows): what the encoder's own feature extractor makes of sounds:
                log-mel spectrograms for Whisper and AST, waveforms for wav2vec2.

        Returns:
            regions of shape `(B, A, Da)`, in the order of time.
        """
        inputs = {self.encoder.main_input_name: input_features.to(compute_dtype(self.encoder))}
        steps = self.encoder(**inputs, return_dict=True).last_hidden_state  # (B, S, Da)
        return nn.functional.adaptive_avg_pool1d(steps.transpose(1, 2), self.num_regions).transpose(1, 2)

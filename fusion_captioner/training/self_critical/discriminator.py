"""
A discriminator between reference captions of an image, generated captions, and captions of other images (Dai et al.,
2017), and the reward that it gives.

B: images, N: sampled captions, T = B·k: reference captions, S: either of the two, where the captions of one image are
adjacent rows, L: tokens, P: regions, Dv: width of a region, H: hidden size
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast, reduce
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from fusion_captioner.causal_layers import CausalLSTM
from fusion_captioner.fusion import count_texts
from fusion_captioner.metrics.tokenization import Tokenizer, tokenize_caption
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.text_encoder import last_token
from fusion_captioner.training.self_critical.sampled_captions import (
    ImageKey,
    ReferenceCaptions,
    Reward,
    RewardSettings,
    SampledCaptions,
)

# Half of the captioner's default, so that most of a step's time goes to the captioner.
HIDDEN_SIZE = 256


class CaptionDiscriminator(nn.Module):
    """
    The evaluator of Dai et al. (2017, section 3.2): an image embedding and an LSTM's embedding of the caption, whose
    dot product is the logit of "a person wrote this about this image".

    Args:
        vocab_size: size of the captioner's vocabulary; the discriminator has its own embedding of these tokens.
        image_width: width of a region.
        hidden_size: width of the LSTM and of both embeddings.
    """

    def __init__(self, vocab_size: int, image_width: int, hidden_size: int = HIDDEN_SIZE) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.text_layers = CausalLSTM(hidden_size, hidden_size, num_layers=1, dropout=0.0)
        self.text_projection = nn.Linear(hidden_size, hidden_size)
        # the scale of the features differs between backbones by orders of magnitude
        self.image_projection = nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, hidden_size))

    def embed_images(self, image_hidden_states: torch.Tensor) -> torch.Tensor:
        """Regions `(B, P, Dv)` to embeddings `(B, H)`."""
        return self.image_projection(image_hidden_states.to(self.embedding.weight.dtype).mean(dim=1))

    def embed_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Texts `(S, L)`, padded on either side, to embeddings `(S, H)`."""
        states, _ = self.text_layers(self.embedding(input_ids), attention_mask)
        return self.text_projection(last_token(states, attention_mask))

    def forward(
        self, image_hidden_states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Logits `(S,)`; their sigmoid is the probability that a person wrote the text about its image."""
        texts = self.embed_texts(input_ids, attention_mask)
        return _logits(_by_text(self.embed_images(image_hidden_states), len(texts)), texts)


def _by_text(images: torch.Tensor, texts: int) -> torch.Tensor:
    """One row per image, `(B, H)`, to one row per text, `(S, H)`."""
    return images.repeat_interleave(count_texts(texts, len(images)), dim=0)


def _logits(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    return (images.float() * texts.float()).sum(dim=-1) / texts.shape[-1] ** 0.5


def discriminator_loss(
    reference: torch.Tensor, generated: torch.Tensor, others: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Binary cross-entropy: reference captions of an image against generated captions and reference captions of other
    images (Dai et al., 2017, eq. 7). True and false captions have equal weight, and so do the two kinds of false
    captions, so that a probability of one half means "undecided".

    Args:
        reference, generated, others: logits, one row per caption; `others` may be empty.

    Returns:
        the loss, and the accuracy with the same weights.
    """
    false = [logits for logits in (generated, others) if len(logits)]
    loss = F.softplus(-reference).mean() + sum(F.softplus(logits).mean() for logits in false) / len(false)
    right = (reference > 0).float().mean() + sum((logits <= 0).float().mean() for logits in false) / len(false)
    return loss / 2, right / 2


class DiscriminatorReward(Reward):
    """
    The probability that a person wrote the caption about this image. The discriminator is trained together with the
    captioner: it rewards a batch first, and then takes one optimiser step on it.

    Its weights and the state of its optimiser are saved in the run's checkpoints. With several processes its gradients
    are averaged, as the captioner's are.
    """

    WEIGHTS, OPTIMIZER = "discriminator.safetensors", "discriminator_optimizer.pt"

    def __init__(
        self,
        references: Mapping[ImageKey, Sequence[str]],
        model: FusionCaptionerForConditionalGeneration,
        settings: RewardSettings,
        tokenizer: Tokenizer = tokenize_caption,
    ) -> None:
        discriminator = CaptionDiscriminator(model.config.vocab_size, model.model.image_encoder.hidden_size)
        self.discriminator = discriminator.to(model.device)
        for weight in self.discriminator.parameters():
            weight.data = broadcast(weight.data)
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=settings.discriminator_learning_rate)

    @torch.no_grad()
    def __call__(self, samples: SampledCaptions) -> np.ndarray:
        logits = self.discriminator(samples.image_hidden_states, samples.input_ids, samples.attention_mask)
        return logits.double().sigmoid().cpu().numpy()

    def learn(self, samples: SampledCaptions, references: ReferenceCaptions) -> dict[str, float]:
        discriminator = self.discriminator
        images = discriminator.embed_images(samples.image_hidden_states)
        generated = discriminator.embed_texts(samples.input_ids, samples.attention_mask)
        texts = discriminator.embed_texts(references.input_ids, references.attention_mask)
        captions = count_texts(len(texts), len(images))
        # pair every caption with another image of the batch, unless it is the same image: a batch may hold an image
        # twice
        shift = int(torch.randint(1, len(images), ())) if len(images) > 1 else 0
        shifted_ids = [*references.image_ids[shift:], *references.image_ids[:shift]]
        is_other = torch.tensor(
            [own != other for own, other in zip(references.image_ids, shifted_ids, strict=True)], device=texts.device
        ).repeat_interleave(captions)
        loss, accuracy = discriminator_loss(
            _logits(_by_text(images, len(texts)), texts),
            _logits(_by_text(images, len(generated)), generated),
            _logits(_by_text(images.roll(-shift, dims=0), len(texts)), texts)[is_other],
        )
        self.optimizer.zero_grad()
        loss.backward()
        for weight in discriminator.parameters():
            weight.grad = reduce(weight.grad, "mean")
        self.optimizer.step()
        return {"discriminator_loss": loss.item(), "discriminator_accuracy": accuracy.item()}

    def save(self, folder: Path) -> None:
        save_file(self.discriminator.state_dict(), folder / self.WEIGHTS)
        torch.save(self.optimizer.state_dict(), folder / self.OPTIMIZER)

    def resume(self, folder: Path) -> None:
        for name in (self.WEIGHTS, self.OPTIMIZER):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name} is missing: this checkpoint was not made with the reward `discriminator`; leave "
                    "it out of `rewards`, or start without `--resume`."
                )
        self.discriminator.load_state_dict(load_file(folder / self.WEIGHTS))
        # the optimiser moves it to the device of the weights
        state = torch.load(folder / self.OPTIMIZER, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state)

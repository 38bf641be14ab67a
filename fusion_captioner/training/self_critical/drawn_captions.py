"""
Captions drawn token by token from the captioner's distribution.

`generate` computes all captions until the last one has ended, and draws a random number for every word of the
vocabulary. Its settings, such as `no_repeat_ngram_size`, change the distribution, and the gradient does not know them:
none is used here.

B: images, n: samples per image, N = B·n, L: tokens, P: tokens of the prompt, V: vocabulary
"""

from collections.abc import Mapping

import torch

from fusion_captioner.generation_fusion_captioner import CACHE
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration

# Ended captions are dropped when at most this share of the rows go on: dropping copies the regions of each caption.
_DROP_BELOW = 0.7
# With more regions, as those of a video, the copies take longer than the captions.
_MOST_REGIONS = 256


@torch.no_grad()
def draw_captions(
    captioner: FusionCaptionerForConditionalGeneration,
    regions: torch.Tensor,
    prompts: Mapping[str, torch.Tensor],
    samples: int,
    max_new_tokens: int,
    eos_token_id: int,
    temperature: float = 1.0,
) -> torch.Tensor:
    """
    Args:
        captioner: in evaluation mode.
        regions (`torch.FloatTensor` of shape `(B, R, Dv)`): one row per image, see `image_hidden_states`.
        prompts: `input_ids` and `attention_mask` `(B, P)`, padded on the left.
        samples: n.
        max_new_tokens: after which a caption breaks off.
        eos_token_id: ends a caption.
        temperature: divides the logits; 1 keeps the captioner's distribution.

    Returns:
        prompts and captions `(N, L)`, those of one image adjacent; after the end they are all `eos_token_id`.
    """
    texts = {name: tensor.repeat_interleave(samples, dim=0) for name, tensor in prompts.items()}
    mask = None if texts["attention_mask"].all() else texts["attention_mask"]
    captions = texts["input_ids"].new_full((len(texts["input_ids"]), max_new_tokens), eos_token_id)
    rows = torch.arange(len(captions), device=captions.device)  # of the captions that are computed
    with captioner.packed_weights():
        outputs = captioner(
            input_ids=texts["input_ids"],
            attention_mask=mask,
            image_hidden_states=regions,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        cache, logits = getattr(outputs, CACHE), outputs.logits[:, -1]
        can_drop = regions.shape[:-1].numel() // len(regions) <= _MOST_REGIONS
        for step in range(max_new_tokens):
            tokens = draw_tokens(logits, temperature)
            tokens = tokens.where((captions[rows, :step] != eos_token_id).all(dim=1), eos_token_id)
            captions[rows, step] = tokens
            going_on = (tokens != eos_token_id).nonzero().squeeze(1)
            if len(going_on) == 0 or step + 1 == max_new_tokens:
                break
            if can_drop and len(going_on) <= _DROP_BELOW * len(rows):
                rows, tokens = rows[going_on], tokens[going_on]
                mask = None if mask is None else mask[going_on]
                cache.batch_select_indices(going_on)
            if mask is not None:
                mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
            logits = captioner.step(tokens[:, None], mask, cache)
    return torch.cat((texts["input_ids"], captions[:, : step + 1]), dim=1)


def draw_tokens(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Inverse transform sampling, with one random number per row: `torch.multinomial` draws one for each word on CPUs,
    which takes as long as the output layer.

    Args:
        logits (`torch.FloatTensor` of shape `(N, V)`).
        temperature: divides them.

    Returns:
        tokens `(N,)`, each as often as it is likely.
    """
    if temperature != 1:
        logits = logits.float() / temperature
    cumulative = logits.softmax(dim=-1, dtype=torch.float32).cumsum_(dim=-1)
    # the sum may miss 1 by rounding
    place = torch.rand_like(cumulative[:, :1]) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, place, right=True).clamp(max=logits.shape[-1] - 1).squeeze(1)

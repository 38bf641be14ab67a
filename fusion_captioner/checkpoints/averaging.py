"""One captioner from several that were trained on from the same one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fusion_captioner.checkpoints.loading import load_captioner
from fusion_captioner.configuration_fusion_captioner import (
    PROBABILITY_FIELDS,
    WEIGHT_FIELDS,
    FusionCaptionerConfig,
    own_fields,
)
from fusion_captioner.files import atomic_folder

# Fields of the config that may differ: they change no logits, or other shapes of weights show that they differ.
_FREE_FIELDS = {
    *(name for name in (*PROBABILITY_FIELDS, *WEIGHT_FIELDS) if name != "concept_bias"),
    *("class_weights", "contrastive_loss_type", "contrastive_margin", "matching_negatives"),
    *("initializer_range", "logit_scale_init_value", "use_cache", "vision_config", "audio_config"),
}


def average_captioners(names: Sequence[str], out: str, trust_remote_code: bool = False) -> Path:
    """
    Save the mean of the weights of several captioners: a model soup (Wortsman et al., 2022), or, where each was
    trained by rewards, weight averaged rewarded policies (Ramé et al., 2024). It is as large and as fast as one of
    them.

    They must come from one captioner, trained on with other seeds, data or settings: the mean of captioners that began
    from weights of their own is no captioner.

    Args:
        names: folders or Hub names, at least two; config, processor and generation settings are taken from the first.
        out: folder to write, without model card.
        trust_remote_code: as for `load_captioner`.

    Returns:
        the folder.

    Raises:
        ValueError: if there are fewer than two, or one has other weights, another vocabulary or another config than
            the first, except in fields that change no logits; and what `load_captioner` and `atomic_folder` raise.
    """
    if len(names) < 2:
        raise ValueError(f"one captioner ({', '.join(names)}) has no mean; name two or more.")
    model, processor = load_captioner(names[0], trust_remote_code=trust_remote_code)
    mean = {key: tensor.double() for key, tensor in model.state_dict().items()}
    shapes = {key: tensor.shape for key, tensor in mean.items()}
    vocabulary = processor.tokenizer.get_vocab()
    for name in names[1:]:
        other, its_processor = load_captioner(name, trust_remote_code=trust_remote_code)
        weights = other.state_dict()
        if {key: tensor.shape for key, tensor in weights.items()} != shapes:
            raise ValueError(f"{name} has other weights than {names[0]}; average captioners of one architecture.")
        for field in sorted(own_fields(FusionCaptionerConfig) - _FREE_FIELDS):
            its_value, value = getattr(other.config, field), getattr(model.config, field)
            if its_value != value:
                raise ValueError(
                    f"{name}: `{field}` is {its_value!r:.60}, and {value!r:.60} in {names[0]}; average captioners "
                    "that compute alike."
                )
        if its_processor.tokenizer.get_vocab() != vocabulary:
            raise ValueError(f"{name} has another vocabulary than {names[0]}; average captioners that came from one.")
        for key, tensor in weights.items():
            mean[key] += tensor
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.copy_((mean[key] / len(names)).to(tensor.dtype))
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return Path(out)

"""The layers of each model that take low-rank updates (LoRA: Hu et al., 2021) by peft's `get_peft_model`."""

from fusion_captioner.image_text_retrieval import FusionCaptionerForImageTextRetrieval
from fusion_captioner.modeling_fusion_captioner import (
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerPreTrainedModel,
)

# Names are long enough not to match layers of image encoders: many of these have an `output`, for example.
FUSION_LAYERS = {
    "sum": ["fusion.image_projection", "fusion.text_projection"],
    "concat": [],
    "gated": ["fusion.image_projection", "fusion.text_projection"],
    "bilinear": ["fusion.image_projection", "fusion.text_projection", "fusion.output"],
    "attention": ["fusion.query", "fusion.key_value", "fusion.output"],
    "co_attention": ["fusion.query", "fusion.key_value", "fusion.output"],
}
TRANSFORMER_LAYERS = ["query_key_value", "feed_forward.0", "feed_forward.2", "layers.position_embedding"]


def lora_layers(model: FusionCaptionerPreTrainedModel) -> dict[str, list[str]]:
    """
    Arguments of `peft.LoraConfig` for a model, as in `LoraConfig(r=8, **lora_layers(model))`.

    Args:
        model: of one of the four task classes.

    Returns:
        `target_modules`, linear and embedding layers, and `modules_to_save`, layers that are trained whole: recurrent
        ones, which LoRA does not support, and those that are new when training starts from a checkpoint of another
        task. None of them is in the image encoder, which is not trained.
    """
    config = model.config
    targets = ["region_projection", *FUSION_LAYERS[config.fusion_type]]
    # its two halves are used separately, which bypasses an adapter
    whole = ["fusion.projection"] if config.fusion_type == "concat" else []
    sequences = {"text_encoder.layers": config.text_encoder_type} if config.text_encoder_type != "embedding" else {}
    if isinstance(model, FusionCaptionerForConditionalGeneration):
        # the embedding shares its weights with `lm_head`, and an adapter would separate them
        sequences["decoder.layers"] = config.decoder_type
    else:
        targets.append("text_encoder.embedding")
    if isinstance(model, FusionCaptionerForImageTextRetrieval):
        targets += ["model.image_projection", "model.text_projection"]
        whole += ["alignment.matching"] if config.matching_loss_weight else []
    elif not isinstance(model, FusionCaptionerForConditionalGeneration):
        whole.append("classifier")
    whole += [name for name, kind in sequences.items() if kind != "transformer"]
    if "transformer" in sequences.values():
        targets += TRANSFORMER_LAYERS
    return {"target_modules": targets, "modules_to_save": whole}


__all__ = ["lora_layers"]

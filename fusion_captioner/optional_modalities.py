"""
What the heads for classification and multiple choice share: image, text and sound are fused, and each may be missing.

B: rows of a batch, T = B·k: texts (the k texts of a row stand together), L: tokens, P: regions, D: hidden size,
M: modalities
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_fusion_captioner import FusionCaptionerConfig
from .modeling_fusion_captioner import FusionCaptionerModel, FusionCaptionerPreTrainedModel
from .placed_weights import own_parameter
from .text_encoder import TEXT_POOLINGS


def drop_modalities(present: torch.Tensor, probability: float) -> torch.Tensor:
    """
    Hide modalities at random (ModDrop: Neverova et al., 2016), so that a model learns to do with what is left.

    Args:
        present (`torch.BoolTensor` of shape `(B, M)`): the modalities that each row has.
        probability (`float`): of a row to lose some of those that it has; how many, and which, is drawn evenly, and
            one always stays.

    Returns:
        those that are left, of the same shape.
    """
    order = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
    rank = order.argsort(dim=1, descending=True).argsort(dim=1)  # those that are present come first
    choices = (present.sum(dim=1) - 1).clamp(min=1)
    kept = 1 + (torch.rand(len(present), device=present.device) * choices).long()
    dropped = torch.rand(len(present), device=present.device) < probability
    return present & (~dropped.unsqueeze(1) | (rank < kept.unsqueeze(1)))


def classification_layers(config: FusionCaptionerConfig, outputs: int) -> nn.Sequential:
    """From a fused state to scores. The layer between lets a label depend on image and text together (such as their
    XOR) whatever the fusion, some of which only add the two."""
    return nn.Sequential(
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden_size, config.hidden_size),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden_size, outputs),
    )


class OptionalModalitiesModel(FusionCaptionerPreTrainedModel):
    """
    The base model with a learned placeholder for each modality: what the fusion is given where a row has no image, no
    text or no sound. In training, `modality_dropout` puts it there at random.
    """

    # losses are means over the rows of a batch: accumulated batches are averaged
    accepts_loss_kwargs = False

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__(config)
        self.model = FusionCaptionerModel(config)
        modalities = ["image", "text"] + (["audio"] if config.audio_config is not None else [])
        self.placeholders = nn.ParameterDict({name: torch.empty(config.hidden_size) for name in modalities})

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.placeholders:
            for placeholder in self.placeholders.values():
                init.normal_(placeholder, std=self.config.initializer_range)
        super()._init_weights(module)

    def fuse(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        image_hidden_states: torch.Tensor | None,
        input_features: torch.Tensor | None,
        has_image: torch.Tensor | None,
        has_audio: torch.Tensor | None,
        texts_per_row: int = 1,
        keeps_text: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """
        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(T, L)`): a row of padding alone has no text.
            pixel_values, image_hidden_states, input_features: see `FusionCaptionerModel.forward`.
            has_image, has_audio (`torch.BoolTensor` of shape `(B,)`, *optional*): false where a row of
                `pixel_values` or `image_hidden_states`, or of `input_features`, stands for nothing.
            texts_per_row (`int`): k.
            keeps_text (`bool`): whether `modality_dropout` leaves texts alone.

        Returns:
            the fused state that stands for each text (`text_pooling`), `(T, D)`; `attentions`; and `hidden_states`,
            text states and joint representations `(T, L, D)`; the config says whether these two are wanted, where the
            arguments do not.

        Raises:
            ValueError: if a row has no modality at all, or numbers of rows differ.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        base = self.model
        embedded: dict[str, torch.Tensor] = {}
        present: dict[str, torch.Tensor] = {}
        if pixel_values is not None or image_hidden_states is not None:
            embedded["image"] = base.embed_regions(base.image_regions(pixel_values, image_hidden_states))
        if input_ids is not None:
            embedded["text"], _, _ = base.text_encoder(base.check_input_ids(input_ids), attention_mask)
        if input_features is not None:
            embedded["audio"] = base.embed_audio(base.get_audio_hidden_states(input_features))
        rows = {n: states.shape[0] // (texts_per_row if n == "text" else 1) for n, states in embedded.items()}
        if not rows:
            raise ValueError(
                "there is neither image, text nor sound; give `pixel_values` (or `image_hidden_states`), `input_ids` "
                "or `input_features`."
            )
        if not torch.compiler.is_compiling() and len(set(rows.values())) > 1:
            raise ValueError(
                f"the modalities have different numbers of rows ({', '.join(f'{n}: {c}' for n, c in rows.items())}); "
                "give each row its image, text and sound, and mark what it lacks by `has_image`, `has_audio` or an "
                "`attention_mask` of zeros."
            )
        count = next(iter(rows.values()))
        device = next(iter(embedded.values())).device
        flags = {"image": has_image, "audio": has_audio}
        for name in self.placeholders:
            present[name] = torch.full((count,), name in embedded, device=device)
            flag = flags.get(name)
            if flag is not None:
                if name not in embedded or flag.shape != (count,):
                    raise ValueError(
                        f"`has_{name}` {tuple(flag.shape)} must have one value for each of the {rows.get(name, 0)} "
                        f"rows of {name} that are given."
                    )
                present[name] = flag.to(device).bool()
        if "text" in embedded and attention_mask is not None:
            present["text"] = attention_mask.view(count, -1).any(dim=1)
        held = torch.stack([present[name] for name in self.placeholders], dim=1)  # (B, M)
        if not torch.compiler.is_compiling() and not held.any(dim=1).all():
            raise ValueError(
                f"row {int(held.any(dim=1).long().argmin())} of the batch has neither image, text nor sound; leave it "
                "out, or give it one of them."
            )
        if self.training and self.config.modality_dropout:
            held = drop_modalities(held, self.config.modality_dropout)
            if keeps_text:
                held[:, 1] = present["text"]
        shown = dict(zip(self.placeholders, held.unbind(dim=1)))

        image_size = base.image_encoder.num_regions + self.config.num_concepts
        sizes = {"image": image_size, "audio": self.config.num_audio_regions}
        regions = [
            self._fill(name, embedded.get(name), shown[name], sizes[name])
            for name in ("image", "audio")
            if name in self.placeholders
        ]
        projected = base.fusion.project_regions(torch.cat(regions, dim=1))
        has_text = shown["text"].repeat_interleave(texts_per_row)
        states = self._fill("text", embedded.get("text"), has_text, 1)
        if "text" not in embedded:
            attention_mask = None
        elif attention_mask is not None:
            # a placeholder is no padding
            attention_mask = attention_mask.masked_fill(~has_text.unsqueeze(1), 1)
        joint, weights, _ = base.fusion(
            states, *projected, attention_mask=attention_mask, output_attentions=bool(output_attentions)
        )
        return (
            TEXT_POOLINGS[self.config.text_pooling](joint, attention_mask),
            None if weights is None else (weights,),
            (states, joint) if output_hidden_states else None,
        )

    def _fill(self, name: str, states: torch.Tensor | None, shown: torch.Tensor, size: int) -> torch.Tensor:
        """States `(rows, size, D)` with the placeholder in all of a row's places where it is not shown."""
        placeholder = own_parameter(self.placeholders, name)
        if states is None:
            return placeholder.expand(shown.shape[0], size, -1)
        return torch.where(shown[:, None, None], states, placeholder.to(states.dtype))

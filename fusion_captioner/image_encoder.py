"""
Image encoder: any transformers vision backbone, its output brought to grid regions.

B: batch, F: frames, H, W: pixels, C: channels, h, w: grid, P = h·w: regions, Dv: width of a region
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoModel, PreTrainedConfig

from .depthwise_convolution import use_fast_gradients
from .placed_weights import compute_dtype

# Numbers and tensors in the files of the model that is loaded. Where they are not set, its size is not limited.
FILES_HOLD: ContextVar[tuple[int, int] | None] = ContextVar("files_hold", default=None)
# What transformers' backbones of several stages call the list of a stage's layers.
STAGE_LISTS = ("layers", "blocks", "layer")
# A model may have more weights than its files: tied ones, and buffers.
WEIGHTS_RATIO, SPARE_ELEMENTS, SPARE_WEIGHTS = 4, 2**26, 1000


@contextmanager
def limited_weights() -> Iterator[None]:
    """
    While a model is built without memory, on the meta device: stop as soon as it has far more weights than its files
    hold (`FILES_HOLD`). A few bytes of a config can describe a backbone of any size.

    Raises:
        ValueError: the config describes such a model.
    """
    if (held := FILES_HOLD.get()) is None:
        yield
        return
    elements, weights = held
    left = [WEIGHTS_RATIO * elements + SPARE_ELEMENTS, WEIGHTS_RATIO * weights + SPARE_WEIGHTS]

    def count(module: nn.Module, key: str, tensor: torch.Tensor | None) -> None:
        if tensor is not None and tensor.is_meta:
            left[0] -= tensor.numel()
            left[1] -= 1
            if min(left) < 0:
                raise ValueError(
                    f"config.json describes a model of more than the {elements:,} numbers in {weights} tensors that "
                    "its weights file holds"
                )

    hooks = [
        register_module_parameter_registration_hook(count),  # type: ignore[arg-type]
        register_module_buffer_registration_hook(count),  # type: ignore[arg-type]
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class ImageEncoder(nn.Module):
    """
    A vision backbone built from its own config. Feature maps `(B, C, h, w)` of CNNs and patch tokens `(B, N, C)` of
    Transformers (without their class and register tokens) both end as regions `(B, P, Dv)`, row by row.
    """

    def __init__(self, vision_config: PreTrainedConfig) -> None:
        super().__init__()
        self.backbone = AutoModel.from_config(vision_config, trust_remote_code=False)
        if vision_config.model_type == "efficientnet" and vision_config.squeeze_expansion_ratio == 0:
            # EfficientNet-Lite has no squeeze-and-excite, which transformers cannot say: it builds gates of one unit,
            # a tenth of the encoder's time, that must be held open by hand
            for block in self.backbone.encoder.blocks:
                block.squeeze_excite = nn.Identity()
        self.frozen = False
        self.fixes_batch_norm = False
        self.num_frozen_layers = 0
        self.image_size = self._image_size(vision_config)
        self.num_regions, self.hidden_size = self._measure_regions()

    @staticmethod
    def _image_size(vision_config: PreTrainedConfig) -> tuple[int, int]:
        size = getattr(vision_config, "image_size", None) or 224
        return (size, size) if isinstance(size, int) else tuple(size)

    def _measure_regions(self) -> tuple[int, int]:
        """Regions of an image of the config's size, and their width. Config classes name it differently, or not at
        all, so a forward pass over shapes alone (the meta device: no memory, no arithmetic) tells."""
        tensors = {**dict(self.backbone.named_parameters()), **dict(self.backbone.named_buffers())}
        shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        pixel_values = torch.empty(1, 3, *self.image_size, device="meta", dtype=self.dtype)
        training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.no_grad():
                outputs = torch.func.functional_call(self.backbone, shapes, (pixel_values,), {"return_dict": True})
            regions = self._to_regions(outputs, pixel_values)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"`vision_config` of type {self.backbone.config.model_type!r} does not build an image encoder "
                f"({type(error).__name__}: {str(error).splitlines()[0]}); give the config of a vision backbone, such "
                "as ResNetConfig, EfficientNetConfig, ViTConfig or CLIPVisionConfig."
            ) from error
        finally:
            self.backbone.train(training)
        return regions.shape[1], regions.shape[2]

    def load_pretrained(self, name: str, revision: str | None = None) -> None:
        """
        Take the weights of a pretrained vision model, a folder or Hub name, of the same config.

        Raises:
            ValueError: if a weight is missing or has another shape.
        """
        pretrained = AutoModel.from_pretrained(name, revision=revision, trust_remote_code=False).state_dict()
        for weight, tensor in self.backbone.state_dict().items():
            if weight not in pretrained or pretrained[weight].shape != tensor.shape:
                raise ValueError(
                    f"{name}: has no weight {weight!r} of shape {tuple(tensor.shape)}; give the vision model that "
                    "`vision_config` is of."
                )
        self.backbone.load_state_dict(pretrained, strict=False)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights, and so of the pixels."""
        return compute_dtype(self.backbone)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """A frozen encoder stays in evaluation mode: its BatchNorm must not follow the statistics of the batches."""
        if mode and not self.frozen:
            use_fast_gradients(self.backbone)
        super().train(mode and not self.frozen)
        for module in self._frozen_modules():
            module.training = False
        if self.fixes_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def set_frozen(self, frozen: bool, fixes_batch_norm: bool = False, num_frozen_layers: int = 0) -> None:
        """
        Stop, or resume, the training of every weight and the updates of BatchNorm's statistics; or of the weights
        alone where `fixes_batch_norm`.

        Args:
            num_frozen_layers: so many of the first `layers`, and what is before them, stay frozen. Their gradients are
                not computed, which saves most where pictures are large.

        Raises:
            ValueError: the backbone has fewer layers.
        """
        if not 0 <= num_frozen_layers <= self.num_layers:
            raise ValueError(
                f"`num_frozen_layers` ({num_frozen_layers}) must be 0 to {self.num_layers}: as many layers has the "
                f"image encoder ({self.backbone.config.model_type})."
            )
        self.frozen = frozen
        self.fixes_batch_norm = fixes_batch_norm
        self.num_frozen_layers = num_frozen_layers
        self.backbone.requires_grad_(not frozen)
        for module in self._frozen_modules():
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)
        self.train(not frozen)

    @property
    def num_layers(self) -> int:
        """Blocks of the backbone, one behind the other; those of all its stages."""
        return len(self._blocks())

    def depths(self) -> dict[str, int]:
        """Of each module of the backbone, by its name: 0 before the first layer, then the number of its layer, and one
        more behind the last."""
        number = {prefix: position for position, prefix in enumerate(self._blocks(), start=1)}
        depths: dict[str, int] = {}
        depth = 0
        for name, _ in self.backbone.named_modules():
            # modules are listed in the order in which data passes them
            path = name.split(".")
            here = [number[prefix] for end in range(len(path), 0, -1) if (prefix := ".".join(path[:end])) in number]
            if here:
                depth = here[0]
            elif depth == len(number):
                depth += 1
            depths[name] = depth
        return depths

    def _blocks(self) -> list[str]:
        """Names of the layers: the elements of the first list of modules; where an element is a stage, which holds a
        list itself, those of its list."""
        lists = [(name, module) for name, module in self.backbone.named_modules() if isinstance(module, nn.ModuleList)]
        if not lists:
            return []
        outer, stages = lists[0]
        blocks = []
        for number, stage in enumerate(stages):
            prefix = f"{outer}.{number}"
            inner = next(
                (
                    name
                    for name, child in stage.named_children()
                    if name in STAGE_LISTS and len(list(child.children()))
                ),
                None,
            )
            if inner is None:
                blocks.append(prefix)
            else:
                blocks += [f"{prefix}.{inner}.{place}" for place, _ in stage.get_submodule(inner).named_children()]
        return blocks

    def _frozen_modules(self) -> list[nn.Module]:
        """The modules of the frozen layers, and of what is before them; not those that hold trained ones, too."""
        if not self.num_frozen_layers:
            return []
        depths = self.depths()
        trained = {""}
        for name, depth in depths.items():
            if depth > self.num_frozen_layers:
                path = name.split(".")
                trained |= {".".join(path[:end]) for end in range(1, len(path) + 1)}
        return [module for name, module in self.backbone.named_modules() if name not in trained]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`, or `(B, F, 3, H, W)` for video).

        Returns:
            regions of shape `(B, P, Dv)`, or `(B, F, P, Dv)`.

        Raises:
            ValueError: if `pixel_values` has another number of dimensions or of channels.
        """
        if pixel_values.dim() not in (4, 5) or pixel_values.shape[-3] != 3:
            raise ValueError(
                "`pixel_values` must have the shape (batch, 3, height, width), or (batch, frames, 3, height, width) "
                f"for video, and has {tuple(pixel_values.shape)}."
            )
        frames = pixel_values.flatten(0, -4).to(self.dtype)
        # CNNs on CPUs and tensor cores run faster on channels-last data; their layers keep the format they are given
        frames = frames.contiguous(memory_format=torch.channels_last)
        regions = self._to_regions(self.backbone(frames, return_dict=True), frames)
        return regions.unflatten(0, pixel_values.shape[:-3])

    def _to_regions(self, outputs, frames: torch.Tensor) -> torch.Tensor:
        hidden = outputs.last_hidden_state
        if hidden.dim() == 4:
            return hidden.flatten(2).transpose(1, 2)
        config = self.backbone.config
        if (patch_size := getattr(config, "patch_size", None)) is None:
            return hidden
        patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        patches = (frames.shape[-2] // patch_height) * (frames.shape[-1] // patch_width)
        # class, distillation and register tokens stand before the patches; pyramids (Swin) merge patches instead
        return hidden[:, hidden.shape[1] - patches :] if hidden.shape[1] > patches else hidden

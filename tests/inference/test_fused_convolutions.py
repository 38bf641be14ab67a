"""Convolutions, normalisation and activations in one call give what they gave one by one."""

import copy

import pytest
import torch
from tiny_models import VISION_CONFIGS, pixels, tiny_model
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval as fuse

from fusion_captioner.inference import fused_convolutions
from fusion_captioner.inference.fused_convolutions import FusedConvolution, fuse_convolutions, quicken_encoder

# without gates, as in the bundled captioner
EFFICIENTNET = {
    "model_type": "efficientnet",
    **VISION_CONFIGS["efficientnet"],
    "hidden_act": "relu6",
    "squeeze_expansion_ratio": 0.0,
}


def encoder_of(vision_config: dict | None):
    torch.manual_seed(0)
    model = tiny_model(**({"vision_config": vision_config} if vision_config else {}))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):  # as if it had seen images
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.running_mean, std=0.1)
    return model.model.image_encoder.eval()


@pytest.mark.parametrize("vision_config", [None, EFFICIENTNET], ids=["resnet", "efficientnet"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_regions_stay_what_they_were(vision_config: dict | None, dtype: torch.dtype, most: float) -> None:
    plain = encoder_of(vision_config)
    fused = copy.deepcopy(plain)
    assert fuse_convolutions(fused, dtype)
    assert not [layer for layer in fused.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    dtypes = [layer.dtype for layer in fused.modules() if isinstance(layer, FusedConvolution)]
    assert set(dtypes) == {torch.float32, dtype}
    for images in (pixels(1), pixels(2)):
        with torch.no_grad():
            expected, found = plain(images), fused(images)
        assert (found - expected).norm() < most * expected.norm()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("settings", "is_product"),
    [
        ({"kernel_size": 1}, True),
        ({"kernel_size": 1, "stride": (2, 3)}, True),
        ({"kernel_size": 1, "padding": 1}, False),
        ({"kernel_size": 1, "groups": 4}, False),
        ({"kernel_size": (1, 3)}, False),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_convolution_of_single_pixels_alone_is_a_product(
    settings: dict, is_product: bool, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    convolution, normalization = nn.Conv2d(8, 16, **settings).eval(), nn.BatchNorm2d(16).eval()
    nn.init.normal_(normalization.running_mean)
    fused = FusedConvolution(convolution, normalization, nn.ReLU6(), torch.float32)
    assert fused.is_product == is_product
    images = torch.randn(2, 8, 6, 5).to(memory_format=memory_format)
    expected = nn.functional.relu6(normalization(convolution(images)))
    torch.testing.assert_close(fused(images), expected, atol=1e-5, rtol=1e-5)


def test_an_encoder_that_would_compute_something_else_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(None)
    expected = encoder(pixels(2))
    # as if the convolution's outputs went elsewhere
    monkeypatch.setattr(
        fused_convolutions,
        "fuse_conv_bn_eval",
        lambda convolution, _: fuse(convolution, nn.BatchNorm2d(convolution.out_channels).eval()),
    )
    assert not fuse_convolutions(encoder)
    assert not [layer for layer in encoder.modules() if isinstance(layer, FusedConvolution)]
    assert torch.equal(encoder(pixels(2)), expected)


def test_an_encoder_without_convolutions_to_fuse_stays_as_it_is() -> None:
    assert not fuse_convolutions(encoder_of({"model_type": "vit", **VISION_CONFIGS["vit"]}))


@pytest.mark.parametrize(
    ("model_type", "settings", "dtype"),
    [
        ("mobilenet_v2", {"tf_padding": True}, torch.float32),  # which reads the stride of its convolutions
        ("efficientnet", {"squeeze_expansion_ratio": 0.25}, torch.bfloat16),  # gates have convolutions of their own
    ],
)
def test_an_encoder_that_cannot_be_fused_computes_in_the_type_all_the_same(
    model_type: str, settings: dict, dtype: torch.dtype
) -> None:
    vision_config = {"model_type": model_type, **VISION_CONFIGS[model_type], **settings}
    plain = encoder_of(vision_config)
    encoder = copy.deepcopy(plain)
    assert not fuse_convolutions(encoder, dtype)
    assert torch.equal(encoder(pixels(2)), plain(pixels(2)))
    model = tiny_model(vision_config=vision_config).eval()
    assert quicken_encoder(model, str(dtype).removeprefix("torch.")) == dtype
    assert model.get_image_hidden_states(pixels(1)).dtype == torch.float32

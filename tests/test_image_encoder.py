"""Every vision backbone gives grid regions, and a frozen one stays as it is."""

from pathlib import Path

import pytest
import torch
from tiny_models import VISION_CONFIGS, calibrate, randomize
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, SwinConfig

from fusion_captioner.depthwise_convolution import DepthwiseConv2d
from fusion_captioner.image_encoder import ImageEncoder

# regions P and their width Dv at the config's image size; 32 pixels where it names none
REGIONS = {
    "resnet": (16, 12),
    "convnext": (4, 10),
    "efficientnet": (4, 128),
    "mobilenet_v2": (4, 128),
    "vit": (16, 16),
    "clip_vision_model": (16, 16),
    "siglip_vision_model": (16, 16),
}


def encoder(vision_type: str = "resnet", **fields) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(AutoConfig.for_model(vision_type, **(VISION_CONFIGS[vision_type] | fields))).eval()


def pictures(vision_type: str = "resnet", *batch: int) -> torch.Tensor:
    size = VISION_CONFIGS[vision_type].get("image_size", 32)
    return torch.randn(*(batch or (2,)), 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("vision_type", VISION_CONFIGS)
def test_every_backbone_gives_regions(vision_type: str) -> None:
    image_encoder = encoder(vision_type)
    randomize(image_encoder, scale=0.3)
    calibrate(image_encoder, pictures(vision_type))
    count, width = REGIONS[vision_type]
    regions = image_encoder(pictures(vision_type))
    assert regions.shape == (2, count, width)
    assert image_encoder.hidden_size == width
    assert regions.isfinite().all()
    assert (regions[0] - regions[1]).abs().max() > 1e-5


@pytest.mark.parametrize("vision_type", ["resnet", "efficientnet", "convnext"])
def test_regions_of_a_feature_map_stand_row_by_row(vision_type: str) -> None:
    image_encoder, images = encoder(vision_type), pictures(vision_type)
    feature_map = image_encoder.backbone(images).last_hidden_state
    regions = image_encoder(images)
    rows, columns = feature_map.shape[2:]
    for row in range(rows):
        for column in range(columns):
            torch.testing.assert_close(regions[:, row * columns + column], feature_map[:, :, row, column])


@pytest.mark.parametrize("vision_type", ["vit", "clip_vision_model"])
def test_regions_of_patches_leave_out_the_class_token(vision_type: str) -> None:
    image_encoder, images = encoder(vision_type), pictures(vision_type)
    tokens = image_encoder.backbone(images).last_hidden_state
    assert tokens.shape[1] == 17
    torch.testing.assert_close(image_encoder(images), tokens[:, 1:])


def test_register_tokens_are_left_out_and_merged_patches_kept() -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1}
    registers = AutoConfig.for_model("dinov2_with_registers", image_size=32, patch_size=8, **fields)
    assert ImageEncoder(registers)(pictures()).shape == (2, 16, 16)
    pyramid = SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, image_size=32, patch_size=4)
    assert ImageEncoder(pyramid)(pictures()).shape == (2, 16, 16)


def test_pictures_need_not_be_square() -> None:
    assert encoder()(torch.zeros(1, 3, 32, 64)).shape == (1, 32, 12)


@pytest.mark.parametrize("vision_type", ["resnet", "vit"])
def test_frames_of_a_video_are_encoded_each_on_its_own(vision_type: str) -> None:
    image_encoder, video = encoder(vision_type), pictures(vision_type, 2, 3)
    regions = image_encoder(video)
    assert regions.shape == (2, 3, *REGIONS[vision_type])
    for frame in range(3):
        torch.testing.assert_close(regions[:, frame], image_encoder(video[:, frame]))


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 32, 32, 3), (1, 1, 1, 3, 32, 32)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`pixel_values` must have the shape .* has \("):
        encoder()(torch.zeros(shape))


def test_a_frozen_encoder_keeps_its_weights_and_batch_statistics() -> None:
    image_encoder = encoder()
    means = {name: value.clone() for name, value in image_encoder.named_buffers() if "running_mean" in name}
    assert means

    def unchanged() -> bool:
        return all(torch.equal(dict(image_encoder.named_buffers())[name], mean) for name, mean in means.items())

    image_encoder.set_frozen(True)
    image_encoder.train()
    assert not any(module.training for module in image_encoder.backbone.modules())
    assert not image_encoder(pictures()).requires_grad
    assert unchanged()

    image_encoder.set_frozen(False, fixes_batch_norm=True)
    image_encoder.train()
    assert image_encoder(pictures()).requires_grad
    assert unchanged()

    image_encoder.set_frozen(False)
    image_encoder.train()
    assert all(parameter.requires_grad for parameter in image_encoder.parameters())
    assert image_encoder(pictures()).requires_grad
    assert not unchanged()


@pytest.mark.parametrize(
    ("kind", "layers", "last"),
    [
        ("resnet", 2, "pooler"),
        ("convnext", 4, "layernorm"),
        ("efficientnet", 7, "encoder.top_conv"),
        ("mobilenet_v2", 16, "conv_1x1"),
        ("vit", 1, "layernorm"),
    ],
)
def test_layers_are_counted_in_every_backbone(kind: str, layers: int, last: str) -> None:
    image_encoder = encoder(kind)
    depths = image_encoder.depths()
    assert image_encoder.num_layers == layers
    first = next(name for name, module in image_encoder.backbone.named_modules() if isinstance(module, nn.Conv2d))
    assert (depths[first], depths[last]) == (0, layers + 1)
    assert set(range(1, layers + 1)) <= set(depths.values())


@pytest.mark.parametrize(
    ("kind", "fields", "layers"),
    [
        ("resnet", {"depths": [1, 2]}, 3),
        ("convnext", {"depths": [1, 2, 1, 1]}, 5),
        ("efficientnet", {}, 7),
        ("vit", {"num_hidden_layers": 3}, 3),
        ("swin", {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4, "patch_size": 4}, 3),
    ],
)
def test_layers_are_numbered_in_the_order_in_which_they_are_computed(kind: str, fields: dict, layers: int) -> None:
    config = VISION_CONFIGS.get(kind, {"image_size": 32}) | fields
    image_encoder = ImageEncoder(AutoConfig.for_model(kind, **config)).eval()
    depths = image_encoder.depths()
    computed: list[int] = []
    for name, module in image_encoder.backbone.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda *_, depth=depths[name]: computed.append(depth))
    image_encoder(torch.randn(1, 3, *image_encoder.image_size))
    assert image_encoder.num_layers == layers
    assert computed == sorted(computed) and {*range(layers + 1)} <= {*computed}


def test_the_first_layers_stay_frozen() -> None:
    image_encoder = encoder()
    image_encoder.set_frozen(False, num_frozen_layers=1)
    image_encoder.train()
    statistics = {name: value.clone() for name, value in image_encoder.named_buffers() if "running_mean" in name}
    assert statistics
    image_encoder(pictures()).sum().backward()
    depths = image_encoder.depths()
    for name, weight in image_encoder.backbone.named_parameters():
        assert (weight.grad is None) is (depths[name.rpartition(".")[0]] <= 1), name
    changed = {
        name
        for name, value in image_encoder.named_buffers()
        if name in statistics and not torch.equal(value, statistics[name])
    }
    assert {depths[name.removeprefix("backbone.").rpartition(".")[0]] for name in changed} == {2}


@pytest.mark.parametrize("training", [False, True])
def test_building_measures_without_touching_batch_statistics(training: bool) -> None:
    image_encoder = encoder().train(training)
    assert image_encoder.backbone.training is training
    assert all((value == 0).all() for name, value in image_encoder.named_buffers() if "running_mean" in name)


def test_a_text_model_is_no_image_encoder() -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ValueError, match=r"`vision_config` of type 'bert' .* vision backbone") as caught:
        ImageEncoder(config)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_are_taken_over(tmp_path: Path) -> None:
    torch.manual_seed(1)
    AutoModel.from_config(AutoConfig.for_model("resnet", **VISION_CONFIGS["resnet"])).save_pretrained(tmp_path)
    image_encoder = encoder()
    before = image_encoder(pictures())
    image_encoder.load_pretrained(str(tmp_path))
    expected = AutoModel.from_pretrained(tmp_path).eval()(pictures()).last_hidden_state
    torch.testing.assert_close(image_encoder(pictures()), expected.flatten(2).transpose(1, 2))
    assert (image_encoder(pictures()) - before).abs().max() > 1e-3


@pytest.mark.parametrize("other", [{"depths": [1, 2]}, {"hidden_sizes": [8, 16]}])
def test_pretrained_weights_of_another_architecture_are_refused(tmp_path: Path, other: dict) -> None:
    AutoModel.from_config(AutoConfig.for_model("resnet", **VISION_CONFIGS["resnet"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weight .*`vision_config`"):
        encoder(**other).load_pretrained(str(tmp_path))


def test_depthwise_layers_are_replaced_for_training_only() -> None:
    image_encoder = encoder("efficientnet")
    assert not any(isinstance(layer, DepthwiseConv2d) for layer in image_encoder.modules())
    image_encoder.set_frozen(True)
    assert not any(isinstance(layer, DepthwiseConv2d) for layer in image_encoder.train().modules())
    image_encoder.set_frozen(False)
    assert any(isinstance(layer, DepthwiseConv2d) for layer in image_encoder.train().modules())

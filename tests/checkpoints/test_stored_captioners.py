"""Captioners that version 0.1 saved: every later version loads them, and captions the same. Never save them again."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fusion_captioner.checkpoints.loading import load_captioner

FOLDERS = sorted((Path(__file__).parents[1] / "data" / "stored_captioners").iterdir())
# Prompts of three words and of one, behind BOS, padded on the left.
IDS = torch.tensor([[1, 11, 12, 13], [0, 0, 1, 14]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


def waves() -> torch.Tensor:
    """Two images `(2, 3, 32, 32)`, by formula, so that no version of a random generator changes them."""
    y, x, channel = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in (32, 32, 3)), indexing="ij")
    images = [torch.sin(0.3 * x + channel + image) * torch.cos(0.2 * y * (image + 1)) for image in range(2)]
    return torch.stack(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_a_stored_captioner_captions_the_same_for_ever(folder: Path) -> None:
    model, processor = load_captioner(str(folder))
    expected = json.loads((folder / "expected.json").read_text())
    prompts = {"input_ids": IDS, "attention_mask": MASK}
    with torch.no_grad():
        logits = model(pixel_values=waves(), **prompts).logits[MASK.bool()]
    of_first_words = torch.tensor(expected["logits"])[MASK.bool()]
    torch.testing.assert_close(logits[:, : of_first_words.shape[-1]], of_first_words, atol=1e-3, rtol=1e-3)
    greedy = model.generate(pixel_values=waves(), max_new_tokens=8, **prompts)
    assert greedy.tolist() == expected["greedy"]
    beams = model.generate(pixel_values=waves(), max_new_tokens=8, num_beams=3, num_return_sequences=2)
    assert beams.tolist() == expected["beams"]
    # through the processor, from a picture to words
    picture = Image.linear_gradient("L").resize((48, 40)).convert("RGB")
    caption = model.generate(**processor(images=[picture], return_tensors="pt"), max_new_tokens=8)
    assert processor.batch_decode(caption, skip_special_tokens=True) == [expected["caption"]]


def test_both_kinds_are_stored_and_small() -> None:
    assert [folder.name for folder in FOLDERS] == ["resnet_attention_lstm", "vit_co_attention_transformer"]
    assert all(sum(file.stat().st_size for file in folder.iterdir()) < 300_000 for folder in FOLDERS)

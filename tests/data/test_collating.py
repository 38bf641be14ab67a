import logging
from pathlib import Path

import pytest
import torch
from tiny_captioner import caption_rows, tiny_model, tiny_processor

from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import CaptionCollator


@pytest.fixture
def rows(tmp_path: Path) -> list[dict]:
    return list(CaptionDataset(caption_rows(tmp_path, 3), captions_per_image=2))


def test_captions_of_an_image_stand_together(rows: list[dict]):
    processor = tiny_processor()
    batch = CaptionCollator(processor)(rows)
    paths = [row["image"]["path"] for row in rows]
    assert torch.equal(batch["pixel_values"], processor(images=paths, return_tensors="pt")["pixel_values"])
    captions = [caption for row in rows for caption in row["captions"]]
    for name, expected in processor(text_target=captions, return_tensors="pt").items():
        assert torch.equal(batch[name], expected)
    assert batch["input_ids"].shape[0] == 6
    assert tiny_model()(**batch).loss.isfinite()


def test_prompt_is_read_but_not_learned(rows: list[dict]):
    rows[1]["prompt"] = "it is"
    batch = CaptionCollator(tiny_processor(), prompt="picture of :")(rows)
    learned = (batch["labels"] != -100).sum(1) - 1  # without the end token
    prompts = batch["attention_mask"].sum(1) - 2 - learned
    assert prompts.tolist() == [3, 3, 2, 2, 3, 3]


def test_max_length_cuts_captions(rows: list[dict]):
    assert CaptionCollator(tiny_processor(), max_length=4)(rows)["input_ids"].shape == (6, 4)


def test_features_in_place_of_images(rows: list[dict]):
    features = torch.randn(3, 4, 5).to(torch.float16)
    for row, values in zip(rows, features, strict=True):
        del row["image"]
        row["image_hidden_states"] = values
    for dtype in (torch.float32, torch.bfloat16):
        batch = CaptionCollator(tiny_processor(), dtype=dtype)(rows)
        assert "pixel_values" not in batch
        assert torch.equal(batch["image_hidden_states"], features.to(dtype))


def spoil(rows: list[dict], kind: str) -> str:
    path = Path(rows[1]["image"]["path"])
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:400])
    elif kind == "no image":
        path.write_text("text")
    else:
        path.unlink()
    return str(path)


@pytest.mark.parametrize("kind", ["truncated", "no image", "missing"])
def test_a_bad_image_is_named_or_left_out(rows: list[dict], kind: str, caplog: pytest.LogCaptureFixture):
    named = spoil(rows, kind)
    with pytest.raises((ValueError, OSError), match="--skip-bad-images") as caught:
        CaptionCollator(tiny_processor())(rows)
    assert str(caught.value).startswith(named)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) == (kind == "missing")

    collate = CaptionCollator(tiny_processor(), skip_bad_images=True)
    with caplog.at_level(logging.WARNING):
        batch = collate(rows)
    assert batch["pixel_values"].shape[0] == 2
    assert batch["input_ids"].shape[0] == 4
    assert collate.num_skipped == 1
    assert named in caplog.text


def test_a_batch_without_any_good_image_is_an_error(rows: list[dict]):
    spoil(rows, "no image")
    with pytest.raises(ValueError, match=r"none of the 1 images of a batch.*'.*-1'"):
        CaptionCollator(tiny_processor(), skip_bad_images=True)(rows[1:2])


def test_batches_that_do_not_fit_are_refused(rows: list[dict]):
    with pytest.raises(ValueError, match="the batch is empty"):
        CaptionCollator(tiny_processor())([])
    with pytest.raises(ValueError, match=r"1 to 2 captions.*`captions_per_image`"):
        CaptionCollator(tiny_processor())([*rows, rows[0] | {"captions": ["a"]}])
    cached = {"image_id": "x", "captions": ["a", "b"], "image_hidden_states": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="1 of 4 rows hold cached features"):
        CaptionCollator(tiny_processor())([*rows, cached])

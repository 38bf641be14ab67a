"""Captions that evaluation generates: one per row whatever the batches, from images or their cached features."""

from pathlib import Path

import pytest
import torch
from tiny_captioner import caption_rows, tiny_model, tiny_processor

from fusion_captioner.data.feature_cache import cached_features
from fusion_captioner.evaluation.generated_captions import generate_captions, generate_texts, score_generated

SETTINGS = {"num_beams": 1, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    # so large that captions differ between images
    return tiny_model(initializer_range=1.0).train()


def test_captions_depend_neither_on_batches_nor_on_where_features_are_from(tmp_path: Path, model):
    rows = caption_rows(tmp_path / "images", 5)
    processor = tiny_processor()
    one = generate_captions(model, processor, rows, batch_size=1, **SETTINGS)
    assert list(one) == rows["image_id"][:]
    assert len(set(one.values())) > 1
    assert generate_captions(model, processor, rows, batch_size=3, **SETTINGS) == one
    cached = cached_features({"eval": rows}, model, processor.image_processor, tmp_path / "cache")["eval"]
    with_features = generate_captions(model, processor, rows, cached.features, batch_size=3, **SETTINGS)
    assert sum(with_features[name] != caption for name, caption in one.items()) <= 1  # float16
    assert model.training
    scores = score_generated(one, rows)
    assert scores["CIDEr"] >= 0
    assert "signature" in scores


def test_each_row_has_its_own_prompt(tmp_path: Path, model):
    rows = caption_rows(tmp_path / "images", 2)
    prompts = ["a red", "it is"]
    texts = generate_texts(model, tiny_processor(), rows, prompts, batch_size=2, **SETTINGS)
    alone = [
        generate_texts(model, tiny_processor(), rows.select([number]), [prompts[number]], **SETTINGS)[0]
        for number in range(2)
    ]
    assert list(texts.values()) == alone


def test_an_image_that_cannot_be_decoded_is_named_or_left_out(tmp_path: Path, model):
    rows = caption_rows(tmp_path / "images", 3)
    bad = Path(rows[1]["image"]["path"])
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises((OSError, ValueError), match="--skip-bad-images") as caught:
        generate_captions(model, tiny_processor(), rows, **SETTINGS)
    assert str(caught.value).startswith(str(bad))
    assert model.training
    captions = generate_captions(model, tiny_processor(), rows, skip_bad_images=True, **SETTINGS)
    assert list(captions) == [rows[0]["image_id"], rows[2]["image_id"]]

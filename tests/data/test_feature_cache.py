import errno
import logging
import os
import pickle
import shutil
import threading
import time
from collections import namedtuple
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tiny_captioner import caption_rows, noise, tiny_model, tiny_processor

from fusion_captioner.data import feature_cache
from fusion_captioner.data.annotated_images import SkippedExample
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import CaptionCollator
from fusion_captioner.data.feature_cache import cached_features, encoder_fingerprint
from fusion_captioner.data.image_hashes import ImageHashes
from fusion_captioner.file_locks import wait_for_lock
from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration

SHAPE = (16, 12)  # what the tiny encoder makes of 32 x 32 pixels: regions, width
ROW_BYTES = 16 * 12 * 2


class Watch:
    """Counts the images that pass through the encoder."""

    def __init__(self, model):
        self.images = 0
        model.base_model.image_encoder.register_forward_hook(self._count)

    def _count(self, module, arguments, output):
        self.images += len(arguments[0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = tiny_model()
    model.freeze_image_encoder()
    return model


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, datasets.Dataset]:
    return {"train": caption_rows(tmp_path / "train", 7), "val": caption_rows(tmp_path / "val", 3, first_seed=50)}


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def image_processor():
    return tiny_processor().image_processor


def direct(model, image_processor, row: dict) -> torch.Tensor:
    pixel_values = image_processor(images=[row["image"]], return_tensors="pt")["pixel_values"]
    model.eval()
    with torch.no_grad():
        return model.get_image_hidden_states(pixel_values)[0].to(torch.float16)


def test_features_are_those_of_the_encoder(model, image_processor, splits, cache_dir):
    cached = cached_features(splits, model, image_processor, cache_dir, batch_size=4)
    for split, (rows, features, _) in cached.items():
        assert len(features) == len(rows) == len(splits[split])
        assert features.shape == SHAPE
        for row in rows:
            values = features[row["image_id"]]
            assert values.dtype == torch.float16
            # batches of another size round differently
            torch.testing.assert_close(values, direct(model, image_processor, row), atol=2e-3, rtol=2e-3)


def test_the_encoder_runs_once_for_an_image(model, image_processor, splits, cache_dir):
    watch = Watch(model)
    cached_features({"train": splits["train"]}, model, image_processor, cache_dir)
    assert watch.images == 7 + 1  # one blank image tells the shape before anything is written
    cached_features({"train": splits["train"]}, model, image_processor, cache_dir)
    assert watch.images == 8
    cached_features(splits, model, image_processor, cache_dir)
    assert watch.images == 8 + 3 + 1


def test_a_second_start_opens_no_image(model, image_processor, splits, cache_dir, monkeypatch: pytest.MonkeyPatch):
    first = cached_features(splits, model, image_processor, cache_dir)
    monkeypatch.setattr(Path, "read_bytes", None)
    monkeypatch.setattr(feature_cache, "open_image", None)
    again = cached_features(splits, model, image_processor, cache_dir)
    for split in splits:
        for image_id in splits[split]["image_id"]:
            assert torch.equal(first[split].features[image_id], again[split].features[image_id])


def test_changed_and_repeated_images(model, image_processor, splits, cache_dir, tmp_path: Path):
    before = cached_features(splits, model, image_processor, cache_dir)["train"].features
    noise(Path(splits["train"][2]["image"]["path"]), seed=99, size=(30, 30))
    shutil.copy(splits["train"][0]["image"]["path"], splits["train"][1]["image"]["path"])
    watch = Watch(model)
    after = cached_features(splits, model, image_processor, cache_dir)["train"].features
    assert watch.images == 1 + 1
    assert not torch.equal(after["train-2"], before["train-2"])
    assert torch.equal(after["train-1"], before["train-0"])
    assert torch.equal(after["train-3"], before["train-3"])


def test_an_id_of_two_images_is_refused(model, image_processor, splits, cache_dir):
    twice = datasets.concatenate_datasets([splits["train"], splits["train"]])
    assert len(cached_features({"train": twice}, model, image_processor, cache_dir)["train"].rows) == 14
    ids = ["0", "1", "0", *map(str, range(3, 7))]
    same = splits["train"].remove_columns("image_id").add_column("image_id", ids)
    with pytest.raises(ValueError, match=r"split 'train': two different images have the id '0'"):
        cached_features({"train": same}, model, image_processor, cache_dir)


def test_embedded_images(model, image_processor, splits, cache_dir):
    def embed(row: dict) -> dict:
        return row | {"image": {"path": None, "bytes": Path(row["image"]["path"]).read_bytes()}}

    embedded = datasets.Dataset.from_list([embed(row) for row in splits["val"]], features=splits["val"].features)
    by_path = cached_features({"val": splits["val"]}, model, image_processor, cache_dir)["val"].features
    watch = Watch(model)
    by_bytes = cached_features({"val": embedded}, model, image_processor, cache_dir)["val"].features
    assert watch.images == 0
    assert all(torch.equal(by_path[key], by_bytes[key]) for key in embedded["image_id"])


def test_the_key_is_weights_and_preprocessing(model, image_processor, tmp_path: Path):
    key = encoder_fingerprint(model, image_processor)
    model.save_pretrained(tmp_path / "saved")
    image_processor.save_pretrained(tmp_path / "saved")
    loaded = FusionCaptionerForConditionalGeneration.from_pretrained(tmp_path / "saved")
    loaded_processor = FusionCaptionerImageProcessor.from_pretrained(tmp_path / "saved")
    assert encoder_fingerprint(loaded, loaded_processor) == key
    assert encoder_fingerprint(loaded.base_model, loaded_processor) == key

    loaded.lm_head.weight.data += 1
    assert encoder_fingerprint(loaded, image_processor) == key
    assert encoder_fingerprint(model, image_processor, torch.bfloat16) != key
    assert encoder_fingerprint(model, FusionCaptionerImageProcessor(size={"height": 64, "width": 64})) != key
    next(loaded.base_model.image_encoder.parameters()).data[0] += 1e-3
    assert encoder_fingerprint(loaded, image_processor) != key
    for name, buffer in model.base_model.image_encoder.named_buffers():
        if name.endswith("running_mean"):
            buffer[0] += 1
    assert encoder_fingerprint(model, image_processor) != key


def test_the_encoder_is_left_as_it_was(splits, image_processor, cache_dir):
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cached_features(splits, model, image_processor, cache_dir)
    assert model.base_model.image_encoder.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_killed_build_goes_on_behind_its_last_shard(
    model, image_processor, splits, cache_dir, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 2 * ROW_BYTES)

    class Killed(BaseException):
        pass

    written = []
    flush = feature_cache.ShardWriter.flush

    def flush_two_then_die(writer):
        if len(written) == 2:
            (writer.folder / "features-00002.arrow.incomplete").write_bytes(b"half")
            raise Killed
        written.append(1)
        flush(writer)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(feature_cache.ShardWriter, "flush", flush_two_then_die)
        cached_features(splits, model, image_processor, cache_dir, batch_size=3)
    watch = Watch(model)
    cached = cached_features(splits, model, image_processor, cache_dir, batch_size=3)
    assert watch.images == 1 + 10 - 4
    folder = cache_dir / encoder_fingerprint(model, image_processor)
    assert len(list(folder.glob("*.arrow"))) == 5
    assert not list(folder.glob("*.incomplete"))
    for row in splits["train"]:
        expected = direct(model, image_processor, row)
        torch.testing.assert_close(cached["train"].features[row["image_id"]], expected, atol=2e-3, rtol=2e-3)


def test_the_size_is_announced_and_refused_where_space_is_short(
    model, image_processor, splits, cache_dir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    usage = namedtuple("usage", "total used free")
    free = feature_cache.SPARE_BYTES + 10 * ROW_BYTES
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda folder: usage(0, 0, free - 1))
    with caplog.at_level(logging.INFO), pytest.raises(OSError, match=r"features of 10 images take .* free there"):
        cached_features(splits, model, image_processor, cache_dir)
    assert "caching features of 10 images" in caplog.text
    assert "10 x 16 x 12 x 2 bytes" in caplog.text
    assert not list(cache_dir.rglob("*.arrow"))
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda folder: usage(0, 0, free))
    cached_features(splits, model, image_processor, cache_dir)


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    model, image_processor, splits, cache_dir, monkeypatch: pytest.MonkeyPatch
):
    def full(descriptor):
        if any(os.path.samestat(os.fstat(descriptor), path.stat()) for path in cache_dir.rglob("features-*")):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fusion_captioner.files.os.fsync", full)
    with pytest.raises(OSError, match=r"features-00000.arrow: cannot be written .*make room"):
        cached_features(splits, model, image_processor, cache_dir)
    assert not [path for path in cache_dir.rglob("features-*")]


def test_bad_images(model, image_processor, splits, cache_dir):
    truncated, missing = (Path(splits["train"][row]["image"]["path"]) for row in (1, 4))
    truncated.write_bytes(truncated.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"train/1.png.*--skip-bad-images"):
        cached_features(splits, model, image_processor, cache_dir)
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=r"train/4.png.*--skip-bad-images"):
        cached_features(splits, model, image_processor, cache_dir)
    for _ in range(2):
        skipped: list[SkippedExample] = []
        rows, features, _ = cached_features(
            splits, model, image_processor, cache_dir, skip_bad_images=True, skipped=skipped
        )["train"]
        assert [(example.split, example.file) for example in skipped] == [
            ("train", str(truncated)),
            ("train", str(missing)),
        ]
        assert rows["image_id"][:] == [f"train-{row}" for row in (0, 2, 3, 5, 6)]
        assert "train-1" not in features


def test_features_beyond_float16_are_refused(model, image_processor, splits, cache_dir):
    model.base_model.image_encoder.register_forward_hook(lambda module, arguments, output: output + 1e5)
    with pytest.raises(ValueError, match="range of float16"):
        cached_features(splits, model, image_processor, cache_dir)


DAMAGES = {
    "emptied": lambda content: b"",
    "truncated": lambda content: content[:100],
    "without its end": lambda content: content[:-16],
    "longer": lambda content: content + b"more",
    "flipped at the start": lambda content: content[:9] + bytes([content[9] ^ 1]) + content[10:],
    "flipped at the end": lambda content: content[:-60] + bytes([content[-60] ^ 64]) + content[-59:],
    "of zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_computed_again(
    model,
    image_processor,
    splits,
    cache_dir,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage,
):
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 4 * ROW_BYTES)
    first = cached_features(splits, model, image_processor, cache_dir)["train"].features
    before = {image_id: first[image_id].clone() for image_id in splits["train"]["image_id"]}
    shard = next(cache_dir.rglob("features-00001.arrow"))
    shard.write_bytes(DAMAGES[damage](shard.read_bytes()))
    watch = Watch(model)
    again = cached_features(splits, model, image_processor, cache_dir)["train"].features
    assert watch.images == 1 + 4
    (line,) = caplog.messages
    assert line == f"{shard}: is damaged: its checksum does not fit; its features are computed again"
    for image_id, features in before.items():
        torch.testing.assert_close(again[image_id], features, atol=2e-3, rtol=2e-3)
    cached_features(splits, model, image_processor, cache_dir)
    assert watch.images == 1 + 4 and len(caplog.messages) == 1


def test_a_deleted_shard_is_made_again_and_no_other_overwritten(
    model, image_processor, splits, cache_dir, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 2 * ROW_BYTES)
    cached_features(splits, model, image_processor, cache_dir)
    next(cache_dir.rglob("features-00001.arrow")).unlink()
    watch = Watch(model)
    cached = cached_features(splits, model, image_processor, cache_dir)
    assert watch.images == 1 + 2
    for row in splits["train"]:
        expected = direct(model, image_processor, row)
        torch.testing.assert_close(cached["train"].features[row["image_id"]], expected, atol=2e-3, rtol=2e-3)


def test_shards_are_plain_arrow_files(model, image_processor, splits, cache_dir):
    features = cached_features(splits, model, image_processor, cache_dir)["val"].features
    (shard,) = cache_dir.rglob("features-*.arrow")
    table = datasets.Dataset.from_file(str(shard))
    assert table.num_rows == 10
    assert table.features["image_hidden_states"].feature.feature == datasets.Value("float16")
    np.testing.assert_array_equal(np.float16(table[7]["image_hidden_states"]), features["val-0"].numpy())


def test_writing_to_a_row_does_not_change_the_cache(model, image_processor, splits, cache_dir):
    features = cached_features(splits, model, image_processor, cache_dir)["val"].features
    copy = pickle.loads(pickle.dumps(features))
    expected = copy["val-0"].clone()
    features["val-0"].zero_()
    assert torch.equal(copy["val-0"], expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_data_with_features_until_they_no_longer_hold(
    model, image_processor, splits, cache_dir, workers: int
):
    rows, features, _ = cached_features({"train": splits["train"]}, model, image_processor, cache_dir)["train"]
    data = CaptionDataset(rows, features=features)
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=4,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=CaptionCollator(tiny_processor()),
    )
    batches = list(loader)
    assert [batch["image_hidden_states"].shape for batch in batches] == [(4, *SHAPE), (3, *SHAPE)]
    expected = torch.stack([features[row["image_id"]] for row in rows]).float()
    assert torch.equal(torch.cat([batch["image_hidden_states"] for batch in batches]), expected)
    assert model(**batches[0]).loss.isfinite()

    data.stop_reading_features()
    assert data.features is None
    assert all("pixel_values" in batch and "image_hidden_states" not in batch for batch in loader)


def test_a_prefetched_batch_gets_images_once_its_features_are_out_of_date(model, image_processor, splits, cache_dir):
    rows, features, _ = cached_features({"train": splits["train"]}, model, image_processor, cache_dir)["train"]
    data = CaptionDataset(rows, features=features)
    collate = CaptionCollator(tiny_processor(), data=data)
    prefetched = collate(data.__getitems__([4, 1]))
    held = collate.refresh(prefetched)
    assert "image_ids" not in held
    assert torch.equal(held["image_hidden_states"], prefetched["image_hidden_states"])
    data.stop_reading_features()
    fresh = collate.refresh(prefetched)
    expected = collate.refresh(collate(data.__getitems__([4, 1])))
    assert fresh.keys() == expected.keys()
    assert all(torch.equal(fresh[name], expected[name]) for name in expected)
    assert "pixel_values" in fresh


def test_rows_without_features_are_refused(model, image_processor, splits, cache_dir):
    features = cached_features({"val": splits["val"]}, model, image_processor, cache_dir)["val"].features
    with pytest.raises(ValueError, match="7 images, such as image_id 'train-0', have no cached features"):
        CaptionDataset(splits["train"], features=features)


def test_hashes_are_remembered_by_size_and_time(tmp_path: Path):
    rows = caption_rows(tmp_path / "x", 2)
    file = tmp_path / "hashes.feather"
    first = ImageHashes(file).of_rows(rows, "x")
    assert len(set(first)) == 2
    noise(Path(rows[0]["image"]["path"]), seed=9, size=(5, 5))
    second = ImageHashes(file).of_rows(rows, "x")
    assert second[0] != first[0]
    assert second[1] == first[1]
    assert ImageHashes(file).of_rows(rows, "x") == second


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_hashes_are_named_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage):
    rows = caption_rows(tmp_path / "x", 2)
    file = tmp_path / "hashes.feather"
    hashes = ImageHashes(file).of_rows(rows, "x")
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert ImageHashes(file).of_rows(rows, "x") == hashes
    (line,) = caplog.messages
    assert line == f"{file}: is damaged: its checksum does not fit; the images are hashed again"
    assert ImageHashes(file).of_rows(rows, "x") == hashes and len(caplog.messages) == 1


def test_waiting_for_another_process_is_said(model, splits, image_processor, cache_dir, caplog) -> None:
    folder = cache_dir / encoder_fingerprint(model, image_processor)
    folder.mkdir(parents=True)
    found = []
    run = threading.Thread(target=lambda: found.append(cached_features(splits, model, image_processor, cache_dir)))
    with caplog.at_level(logging.INFO), wait_for_lock(folder / ".lock", "tests"):
        run.start()
        deadline = time.monotonic() + 600
        while "waiting for" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
        assert f"waiting for process {os.getpid()} on " in caplog.text
        assert f"which computes features in {folder}" in caplog.text
        assert not found
    run.join()
    assert len(found[0]["train"].rows) == 7

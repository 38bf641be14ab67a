from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from tiny_captioner import caption_rows, tiny_model, tiny_processor
from transformers import Trainer, TrainerCallback, TrainingArguments

from fusion_captioner.data.caption_sampling import (
    CaptionDataset,
    SetCaptionEpoch,
    StreamedCaptionDataset,
    draw_captions,
)
from fusion_captioner.data.collating import CaptionCollator

CAPTIONS = ["one", "two", "three", "four", "five"]


def draw(epoch: int, image_id: str = "7", count: int = 1, seed: int = 0, captions: list[str] = CAPTIONS) -> list[str]:
    return draw_captions(captions, count, seed, epoch, image_id)


def test_every_caption_is_drawn_once_in_as_many_epochs():
    for first in (0, 5, 10):
        assert sorted(draw(epoch)[0] for epoch in range(first, first + 5)) == sorted(CAPTIONS)


def test_drawing_depends_on_seed_epoch_and_image():
    by_epoch = ["".join(draw(epoch)) for epoch in range(20)]
    assert by_epoch == ["".join(draw(epoch)) for epoch in range(20)]
    assert by_epoch[:5] != by_epoch[5:10] or by_epoch[5:10] != by_epoch[10:15]
    assert by_epoch != ["".join(draw(epoch, seed=1)) for epoch in range(20)]
    assert by_epoch != ["".join(draw(epoch, image_id="8")) for epoch in range(20)]


def test_drawing_is_uniform_over_images():
    counts = Counter(draw(0, image_id=str(number))[0] for number in range(5000))
    assert all(850 < counts[caption] < 1150 for caption in CAPTIONS)


def test_several_captions_of_an_epoch_differ_until_there_are_too_few():
    for epoch in range(6):
        assert len(set(draw(epoch, count=2))) == 2
        assert sorted(draw(epoch, count=5)) == sorted(CAPTIONS)
    assert Counter(draw(0, count=3, captions=["x", "y"])) in (Counter(x=2, y=1), Counter(x=1, y=2))


def test_one_row_an_image(tmp_path: Path):
    rows = caption_rows(tmp_path, 4)
    data = CaptionDataset(rows, seed=3)
    assert len(data) == 4
    for epoch in (0, 2):
        data.set_epoch(epoch)
        for number, row in enumerate(data.__getitems__([2, 0])):
            source = rows[[2, 0][number]]
            assert row["image"] == source["image"]
            assert row["captions"] == draw_captions(source["captions"], 1, 3, epoch, source["image_id"])


def test_one_row_a_caption(tmp_path: Path):
    rows = datasets.concatenate_datasets(
        [caption_rows(tmp_path / "x", 2), caption_rows(tmp_path / "y", 2, captions=1)]
    )
    data = CaptionDataset(rows.select([3, 1, 0]), captions_per_image="all")
    assert len(data) == 1 + 3 + 3
    expected = [(rows[index]["image_id"], text) for index in (3, 1, 0) for text in rows[index]["captions"]]
    assert [(row["image_id"], row["captions"][0]) for row in data] == expected


@pytest.mark.parametrize("count", [0, "some", 1.5, True])
def test_a_senseless_number_of_captions_is_refused(tmp_path: Path, count):
    with pytest.raises(ValueError, match=r"`captions_per_image`.*at least 1, or 'all'"):
        CaptionDataset(caption_rows(tmp_path, 1), captions_per_image=count)


def test_running_workers_follow_the_epoch(tmp_path: Path):
    data = CaptionDataset(caption_rows(tmp_path, 6))
    loader = torch.utils.data.DataLoader(
        data, batch_size=2, num_workers=2, persistent_workers=True, collate_fn=lambda rows: rows
    )
    for epoch in range(3):
        data.set_epoch(epoch)
        seen = [row["captions"] for batch in loader for row in batch]
        assert seen == [row["captions"] for row in data]


def test_a_stream_gives_the_same_captions(tmp_path: Path):
    rows = caption_rows(tmp_path, 4)
    for count in (1, 2, "all"):
        data = CaptionDataset(rows, captions_per_image=count)
        stream = StreamedCaptionDataset(rows.to_iterable_dataset(), captions_per_image=count)
        for epoch in (0, 1):
            data.set_epoch(epoch)
            stream.set_epoch(epoch)
            assert list(stream) == [{key: row[key] for key in ("image", "captions", "image_id")} for row in data]


class Losses(TrainerCallback):
    def __init__(self):
        self.by_step: dict[int, float] = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.by_step[state.global_step] = logs["loss"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_resuming_within_an_epoch_gives_the_losses_of_an_unbroken_run(tmp_path: Path, workers: int):
    rows = caption_rows(tmp_path / "images", 6)

    def train(output: Path, steps: int, resume: bool = False) -> dict[int, float]:
        torch.manual_seed(0)
        losses = Losses()
        arguments = TrainingArguments(
            output_dir=str(output),
            num_train_epochs=3,
            max_steps=steps if steps < 9 else -1,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_steps=4,
            save_strategy="steps",
            report_to=[],
            remove_unused_columns=False,
            dataloader_num_workers=workers,
            disable_tqdm=True,
            use_cpu=True,
            seed=5,
        )
        trainer = Trainer(
            model=tiny_model(),
            args=arguments,
            train_dataset=CaptionDataset(rows, seed=5),
            data_collator=CaptionCollator(tiny_processor()),
            callbacks=[losses, SetCaptionEpoch()],
        )
        trainer.train(resume_from_checkpoint=resume)
        return losses.by_step

    unbroken = train(tmp_path / "unbroken", 9)
    train(tmp_path / "broken", 4)
    resumed = train(tmp_path / "broken", 9, resume=True)
    assert set(resumed) == {5, 6, 7, 8, 9}
    assert resumed == {step: unbroken[step] for step in resumed}

"""Training on questions with choices: from an imagefolder, and from TVQA's own files in miniature."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_labels import write_head_recipe, write_questions
from tiny_recipe import MODEL_CONFIG

from fusion_captioner.cli import main
from fusion_captioner.data.arguments import ChoiceDataArguments
from fusion_captioner.data.choice_questions import load_choice_questions
from fusion_captioner.data.tvqa import load_tvqa, read_srt, read_subtitle_lines
from fusion_captioner.training.train import train_from_yaml

CLIP = "met_s01e01_seg01_clip_00"
QUESTION = {
    "qid": 0,
    "q": "What is it?",
    "a0": "Day",
    "a1": "Night",
    "a2": "A cat",
    "a3": "A dog",
    "a4": "Rain",
    "answer_idx": 1,
    "ts": "1.0-2.0",
    "vid_name": CLIP,
    "show_name": "How I Met You Mother",
}
SRT = """\
1
00:00:00,500 --> 00:00:00,900
<i>Ted:</i> Good morning.

2
00:00:01,200 --> 00:00:01,900
Ted: It is
dark.
"""


def write_tvqa(root: Path, **changes) -> Path:
    root.mkdir()
    for split, count in (("train", 4), ("val", 2), ("test_public", 1)):
        lines = []
        for number in range(count):
            line = QUESTION | {"qid": number} | changes
            if split == "test_public":
                del line["answer_idx"]
            lines.append(json.dumps(line) + "\n")
        (root / f"tvqa_{split}.jsonl").write_text("".join(lines))
    clip = root / "frames" / "met_frames" / CLIP
    clip.mkdir(parents=True)
    for number in range(1, 12):
        Image.new("RGB", (24, 20), (20 * number,) * 3).save(clip / f"{number:05}.jpg")
    (root / "subtitles").mkdir()
    (root / "subtitles" / f"{CLIP}.srt").write_text(SRT)
    said = [{"text": "Ted: It is dark.", "start": 1.2, "end": 1.9}]
    (root / "tvqa_subtitles.jsonl").write_text(json.dumps({"vid_name": CLIP, "sub": said}) + "\n")
    return root


def tvqa(root: Path, split: str = "val", **fields):
    return load_tvqa(ChoiceDataArguments(source=str(root), layout="tvqa", **fields), {split: None})[split]


@pytest.mark.slow
def test_choices_are_learned_by_the_image_and_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_head_recipe(
        tmp_path / "recipe.yaml",
        write_questions(tmp_path / "data"),
        task="multiple_choice",
        model={"config": {**MODEL_CONFIG, "initializer_range": 0.3, "dropout": 0.0}},
        data={"feature_cache": str(tmp_path / "features")},
        training={
            "max_steps": 50,
            "per_device_train_batch_size": 16,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
        },
    )
    metrics = train_from_yaml(recipe)
    assert metrics["eval_accuracy"] == 1 and metrics["eval_question_only_accuracy"] == 0.5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: visual-question-answering" in card and "| question only accuracy | 0.5000 |" in card

    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "out"), "--source", str(tmp_path / "data"), "--batch-size", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["question and image"]["accuracy"] == 1 and report["question_only"]["accuracy"] == 0.5
    pictures = [str(tmp_path / "data" / "validation" / name) for name in ("0.png", "1.png")]
    flags = ["answer", "--model", str(tmp_path / "out"), "--question", "what is it"]
    assert main([*flags, *pictures, "--choices", "rain", "day", "night"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["answer"] for line in lines] == ["night", "day"]
    for wrong in ("day", " "):
        assert main([*flags, "--choices", "day", wrong]) == 2
        assert f"--choices ('day', {wrong!r}) must be two different answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"label": 3}, ["label 3", "3 choices"]),
        ({"label": "night"}, ["label 'night'"]),
        ({"choices": ["night"]}, ["choices ['night']", "two"]),
        ({"choices": ["night", ""]}, ["choices ['night', '']"]),
        ({"question": None}, ["'question' is None"]),
    ],
)
def test_questions_that_cannot_be_are_named(tmp_path: Path, fields: dict, words: list[str]) -> None:
    path = write_questions(tmp_path / "data", 2, 1) / "train" / "metadata.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(json.dumps(json.loads(lines[0]) | fields) + "\n" + lines[1] + "\n")
    with pytest.raises(ValueError) as caught:
        load_choice_questions(ChoiceDataArguments(source=str(tmp_path / "data")), {"train": None})
    assert [word for word in (f"{path}, line 1", *words) if word not in str(caught.value)] == []


def test_tvqa_is_read_as_published(tmp_path: Path) -> None:
    root = write_tvqa(tmp_path / "tvqa")
    subtitles = str(root / "subtitles")
    (row,) = tvqa(root, "test_public", subtitles=subtitles, num_frames=3)
    assert row["label"] == -100 and row["choices"] == ["Day", "Night", "A cat", "A dog", "Rain"]
    # from 1 to 2 seconds, at three frames a second counted from 0
    assert row["frame_ids"] == [f"{CLIP}/{name}.jpg" for name in ("00004", "00005", "00007")]
    assert row["question"] == "Ted: It is dark. What is it?"
    whole = tvqa(root, subtitles=subtitles, num_frames=2, localised=False)[0]
    assert whole["frame_ids"] == [f"{CLIP}/00001.jpg", f"{CLIP}/00011.jpg"]
    assert whole["question"] == "Ted: Good morning. Ted: It is dark. What is it?" and whole["label"] == 1
    lines = str(root / "tvqa_subtitles.jsonl")
    assert tvqa(root, subtitles=lines, max_subtitle_words=2)[0]["question"] == "Ted: It What is it?"
    assert tvqa(root, modalities=["text"])[0]["frame_ids"] == []


@pytest.mark.slow
def test_tvqa_trains_on_frames_from_the_cache_and_from_files(tmp_path: Path) -> None:
    root = write_tvqa(tmp_path / "tvqa", ts="nan-nan")
    recipe = write_head_recipe(
        tmp_path / "recipe.yaml",
        root,
        task="multiple_choice",
        data={"layout": "tvqa", "subtitles": str(root / "subtitles"), "num_frames": 3},
        training={"max_steps": 1, "save_strategy": "no", "load_best_model_at_end": False},
    )
    from_files = train_from_yaml(recipe)
    flags = ["--data.feature_cache", str(tmp_path / "features"), "--training.output_dir", str(tmp_path / "cached")]
    cached = train_from_yaml(recipe, flags)
    assert cached["eval_loss"] == pytest.approx(from_files["eval_loss"], abs=1e-3)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_frames"] == 3


def test_what_is_wrong_with_tvqa_is_named(tmp_path: Path) -> None:
    root = write_tvqa(tmp_path / "tvqa", ts="2.0-1.0")
    with pytest.raises(ValueError, match=r"tvqa_val\.jsonl, line 1: the `ts` '2\.0-1\.0' ends before it begins"):
        tvqa(root)
    with pytest.raises(FileNotFoundError, match="no such folder or file of subtitles"):
        tvqa(root, localised=False, subtitles=str(root / "nowhere"))
    (root / "frames" / "met_frames" / CLIP).rename(root / "frames" / "met_frames" / "other")
    with pytest.raises(FileNotFoundError, match=f"there is no folder <show>/{CLIP} in"):
        tvqa(root, localised=False)
    bad = tmp_path / "bad.srt"
    bad.write_text("Hello.\n")
    with pytest.raises(ValueError, match=r"'Hello\.' has no times"):
        read_srt(bad)
    bad.write_text('{"vid_name": "a", "sub": [{"text": "b"}]}\n')
    with pytest.raises(ValueError, match="line 1: must have `vid_name`"):
        read_subtitle_lines(bad)

"""Questions with answers that are learned together with captions."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_recipe import write_data, write_recipe

from fusion_captioner.data.arguments import DataArguments
from fusion_captioner.data.caption_datasets import load_splits
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import CaptionCollator
from fusion_captioner.data.prompted_texts import add_questions
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.train import train_from_yaml

ASKED = {"is it left of it?": "yes, left", "what kind?": "a square"}


def write_questions(root: Path, photos: Path) -> Path:
    """Two photos with two questions each, the answer among choices."""
    (root / "train").mkdir(parents=True)
    rows = []
    for number in range(2):
        shutil.copy(photos / "images" / f"{number}.png", root / "train" / f"{number}.png")
        for question, answer in ASKED.items():
            rows.append({"file_name": f"{number}.png", "question": question, "choices": ["no", answer], "label": 1})
    (root / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_data(tmp_path / "photos")


@pytest.fixture
def questions(tmp_path: Path, photos: Path) -> dict[str, str]:
    return {"source": str(write_questions(tmp_path / "questions", photos)), "choices_column": "choices"}


def test_each_answer_follows_its_question_and_captions_follow_none(
    tmp_path: Path, photos: Path, questions: dict[str, str]
) -> None:
    data = DataArguments(source=str(photos), question_sources=[questions], cache_dir=str(tmp_path / "arrow"))
    train = add_questions(load_splits(data)["train"], data)
    assert len(train) == 10 and len(set(train["image_id"])) == 10
    rows = CaptionDataset(train, captions_per_image=2, augmentations=["flip"])
    train_from_yaml(write_recipe(tmp_path / "recipe.yaml", photos, data={"question_sources": [questions]}))
    processor = FusionCaptionerProcessor.from_pretrained(tmp_path / "out")
    collator = CaptionCollator(processor)
    learned = set()
    for epoch in range(6):
        rows.set_epoch(epoch)
        batch = collator([rows[index] for index in range(len(rows))])
        for number, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
            text = processor.tokenizer.decode(ids, skip_special_tokens=True)
            answer = processor.tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
            assert text.endswith(answer)
            if number < 16:
                assert text == answer
            else:
                learned.add((text, answer))
    # a mirrored picture exchanges the sides of both
    assert learned == {
        (f"question: {question} answer: {answer}", answer)
        for question, answer in [*ASKED.items(), ("is it right of it?", "yes, right")]
    }


def test_questions_do_not_share_the_ids_of_other_photos(
    tmp_path: Path, photos: Path, questions: dict[str, str]
) -> None:
    more = write_data(tmp_path / "more" / "questions", train=2)
    other = questions | {"source": str(write_questions(tmp_path / "other" / "questions", more))}
    data = DataArguments(
        source=str(photos),
        more_train_sources=[str(more)],
        question_sources=[questions, other, questions],
        cache_dir=str(tmp_path / "arrow"),
    )
    train = add_questions(load_splits(data)["train"], data)
    images: dict[str, set[str]] = {}
    for image_id, image in zip(train["image_id"], train["image"], strict=True):
        images.setdefault(image_id, set()).add(image["path"])
    assert all(len(paths) == 1 for paths in images.values())
    assert list(images)[8:] == [
        f"questions{place}"
        for place in ("/0", "/1", "-2/train/0.png", "-2/train/1.png", "-3/train/0.png", "-3/train/1.png")
    ]


def test_concepts_are_words_of_captions_alone(tmp_path: Path, photos: Path, questions: dict[str, str]) -> None:
    things = ["dog", "cat", "bird", "horse", "boat", "train", "ball", "tree"]
    document = json.loads((photos / "dataset_flickr8k.json").read_text())
    for number, image in enumerate(document["images"]):
        image["sentences"] = [{"raw": f"{word} {things[number % 8]} on grass"} for word in ("a", "the", "one")]
    (photos / "dataset_flickr8k.json").write_text(json.dumps(document))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        photos,
        data={"question_sources": [questions], "concept_min_images": 1},
        training={"num_train_epochs": 1},
    )
    metrics = train_from_yaml(recipe, ["--model.config.concept_loss_weight", "1.0"])
    assert "eval_CIDEr" in metrics
    processor = FusionCaptionerProcessor.from_pretrained(tmp_path / "out")
    ids = json.loads((tmp_path / "out" / "config.json").read_text())["concept_token_ids"]
    assert set(processor.tokenizer.convert_ids_to_tokens(ids)) == set(things)


@pytest.mark.parametrize(
    ("sources", "training", "words"),
    [
        ([{"choices_column": "choices"}], {}, ["`data.question_sources` (0: ", "must have a `source`"]),
        ([{"source": "x", "folds": 2}], {}, ["only answer_column, choices_column"]),
        ([{"source": "missing"}], {}, ["missing"]),
        ([{"source": "x"}], {"stage": "self_critical"}, ["is for cross-entropy"]),
    ],
)
def test_wrong_question_sources(tmp_path: Path, photos: Path, sources: list, training: dict, words: list[str]) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", photos, data={"question_sources": sources}, training=training)
    with pytest.raises((ValueError, OSError)) as caught:
        train_from_yaml(recipe)
    assert all(word in str(caught.value) for word in words), caught.value

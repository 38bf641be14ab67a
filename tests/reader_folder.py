"""The folder that a reader of the guides works in: photos, data and tiny models under the names of the guides."""

import json
import os
import shutil
from pathlib import Path

from tiny_captioner import WORDS, noise, tiny_model, tiny_processor
from tiny_models import tiny_head
from tiny_recipe import MODEL_CONFIG, write_data
from transformers import PreTrainedTokenizerFast, ResNetConfig, ResNetModel

from fusion_captioner import FusionCaptionerForImageTextRetrieval, FusionCaptionerProcessor
from fusion_captioner.data.published import DATASETS

# `FOLDER` of the guides stands for the data of the recipe that the command names, or else for captions.
DATA_OF_RECIPES = {
    "tweet_sentiment": "tweets",
    "chest_xray": "xrays",
    "chest_report": "xrays",
    "vqa_rad": "questions",
    "visual7w": "choices",
}
LANGUAGES = ["en", "zh", "de"]
VISION = {name: value for name, value in MODEL_CONFIG["vision_config"].items() if name != "model_type"}
SENTENCES = ["a red square", "a green picture", "it is blue"]


def write_reader_folder(root: Path) -> None:
    """All that the guides take as given, with several rows of each kind of data."""
    noise(root / "photo.jpg", 0)
    noise(root / "xray.jpg", 1)
    for number in range(3):
        noise(root / "photos" / f"{number}.jpg", number)
        noise(root / "holiday" / f"{number}.jpg", number)
    (root / "yesterday").touch()
    os.utime(root / "yesterday", (0, 0))

    write_data(root / "captions", train=8, val=2)
    write_coco(root / "coco")
    for number in range(20):
        noise(root / "flickr8k" / "Images" / f"{number}.jpg", number)
    lines = [f"{number}.jpg,a red square {number}" for number in range(20)]
    (root / "flickr8k" / "captions.txt").write_text("\n".join(["image,caption", *lines]))
    write_rows(root / "tweets", text=SENTENCES, label=["negative", "neutral", "positive"])
    record = {"sex": ["M", "F"], "age": ["65", "30"], "view": ["PA"], "temperature": ["37"], "pO2_saturation": [""]}
    notes = {
        "patient_id": [f"patient {number}" for number in range(12)],
        "clinical_notes": SENTENCES,
        "finding": ["COVID-19", "SARS"],
    }
    write_rows(root / "xrays", **record, **notes)
    kinds = {"question": ["is it red", "what is it"], "answer_type": ["CLOSED", "OPEN"]}
    write_rows(root / "questions", answer=["yes", "a square", "no", "a picture"], **kinds)
    places = [["inside", "outside"], ["a dog", "a cat", "a cow"]]
    write_rows(root / "choices", question=["where is it", "what is it"], choices=places, label=[0, 1])

    ResNetModel(ResNetConfig(**VISION)).save_pretrained(root / "lite2")
    tiny_processor().image_processor.save_pretrained(root / "lite2")
    shutil.copytree(root / "lite2", root / "lite2-320")
    captioner = root / "runs" / "captioner"
    tiny_model().save_pretrained(captioner)
    tiny_processor().save_pretrained(captioner)
    for name in ("a", "b"):
        shutil.copytree(captioner, root / "runs" / name)


def write_retriever(root: Path) -> None:
    """What `train flickr8k_retrieval` leaves."""
    losses = {"contrastive_loss_weight": 1.0, "matching_loss_weight": 1.0}
    tiny_head(FusionCaptionerForImageTextRetrieval, vocab_size=len(WORDS), **losses).save_pretrained(
        root / "runs" / "flickr8k_retrieval"
    )
    tiny_processor().save_pretrained(root / "runs" / "flickr8k_retrieval")


def write_captions(root: Path) -> None:
    """What the guide to folders scores: captions of `FOLDER` and of COCO."""
    lines = [{"image": f"captions/images/{number}.png", "caption": "a red square"} for number in (8, 9)]
    (root / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "results.json").write_text(json.dumps([{"image_id": n, "caption": "a red square"} for n in (8, 9)]))


def write_first_captioner(root: Path) -> None:
    """What the guide to training goes on from: the captioner of the recipe `flickr8k_cpu`."""
    shutil.copytree(root / "runs" / "captioner", root / "runs" / "flickr8k_cpu")


def write_languages(root: Path) -> None:
    """What the guide to languages takes as given: Chinese captions of Flickr8k, and a captioner of three languages."""
    shutil.rmtree(root / "flickr8k")
    write_data(root / "flickr8k", train=2, val=2).joinpath("dataset_flickr8k.json").rename(
        root / "flickr8k" / "dataset_flickr8k_zh.json"
    )
    processor = tiny_processor()
    tokenizer: PreTrainedTokenizerFast = processor.tokenizer
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<|{language}|>" for language in LANGUAGES]})
    captioner = root / "runs" / "captioner"
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(captioner)
    FusionCaptionerProcessor(processor.image_processor, tokenizer, languages=LANGUAGES).save_pretrained(captioner)


def write_rows(folder: Path, rows: int = 12, **columns: list) -> None:
    """An imagefolder with the splits train and validation; the values of a column are used in turn."""
    for split in ("train", "validation"):
        lines = [
            {"file_name": noise(folder / split / f"{split}{number}.png", number).name}
            | {name: values[number % len(values)] for name, values in columns.items()}
            for number in range(rows)
        ]
        (folder / split / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_coco(folder: Path) -> None:
    """COCO's layout, as `download coco` leaves it."""
    (folder / "annotations").mkdir(parents=True)
    for split, numbers in (("train2017", range(8)), ("val2017", range(8, 10))):
        names = {number: noise(folder / split / f"{number:012}.jpg", number).name for number in numbers}
        document = {
            "images": [{"id": number, "file_name": name} for number, name in names.items()],
            "annotations": [{"image_id": number, "caption": text} for number in numbers for text in SENTENCES],
        }
        (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(document))
    record = {
        part.name: {"unpacked": {pattern: len(list(folder.glob(pattern))) for pattern in part.members}}
        for part in DATASETS["coco"].parts.values()
    }
    (folder / "downloads.json").write_text(json.dumps(record))

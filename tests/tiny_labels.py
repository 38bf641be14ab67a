"""An imagefolder with labels that image and text tell only together, and a recipe that learns them in seconds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from tiny_recipe import MODEL_CONFIG

LIGHTS = [20, 230]
WORDS = ["quiet", "loud"]
LABELS = ["same", "other"]


def write_labelled(root: Path, train: int = 16, validation: int = 8, **fields: Sequence[Any]) -> Path:
    """Row `n`: a dark or a bright picture, and one of two words; `fields` are further columns, used in turn."""
    for split, count in (("train", train), ("validation", validation)):
        folder = root / split
        folder.mkdir(parents=True)
        lines = []
        for number in range(count):
            light, word = number % 2, number // 2 % 2
            Image.new("RGB", (24, 20), (LIGHTS[light],) * 3).save(folder / f"{number}.png")
            line = {"file_name": f"{number}.png", "text": f"a {WORDS[word]} day", "label": LABELS[light ^ word]}
            lines.append(line | {name: values[number % len(values)] for name, values in fields.items()})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def write_questions(root: Path, train: int = 16, validation: int = 8) -> Path:
    """Dark and bright pictures, two answers in either order, and a third one now and then."""
    for split, count in (("train", train), ("validation", validation)):
        folder = root / split
        folder.mkdir(parents=True)
        lines = []
        for number in range(count):
            light, turned = number % 2, number // 2 % 2
            Image.new("RGB", (24, 20), (LIGHTS[light],) * 3).save(folder / f"{number}.png")
            choices = ["day", "night"] if turned else ["night", "day"]
            choices += ["rain"] * (number % 3 == 0)
            line = {"file_name": f"{number}.png", "question": "what is it", "choices": choices}
            lines.append(line | {"label": light ^ turned})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def write_head_recipe(path: Path, source: Path, task: str = "classification", **changes: dict[str, Any]) -> Path:
    """The YAML of a run on `source`, its results in `out` next to the file; `changes` are fields by section."""
    sections: dict[str, Any] = {
        "task": task,
        "model": {"image_size": 32, "config": {**MODEL_CONFIG, "dropout": 0.0}},
        "tokenizer": {"vocab_size": 200, "min_frequency": 1},
        "data": {"source": str(source)},
        "training": {
            "output_dir": str(path.parent / "out"),
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
        },
    }
    for section, values in changes.items():
        sections[section] |= values
    path.write_text(yaml.safe_dump(sections))
    return path

"""A recipe that trains in seconds, on Karpathy's layout with pictures of noise."""

import json
from pathlib import Path
from typing import Any

import yaml
from tiny_captioner import noise

COLOURS = ["red", "green", "blue"]
MODEL_CONFIG = {
    "vision_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 12],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "hidden_size": 16,
    "num_attention_heads": 2,
    "projection_dim": 8,
    "dropout": 0.1,
}


def write_data(root: Path, train: int = 8, restval: int = 0, val: int = 3) -> Path:
    """A folder of so many images a split, each with three captions."""
    images = []
    for split in ["train"] * train + ["restval"] * restval + ["val"] * val:
        number = len(images)
        name = noise(root / "images" / f"{number}.png", number).name
        sentences = [{"raw": f"a {colour} square of {split} {number}"} for colour in COLOURS]
        images.append({"imgid": number, "filename": name, "split": split, "sentences": sentences})
    (root / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    return root


def write_recipe(path: Path, source: Path, **changes: dict[str, Any]) -> Path:
    """The YAML of a run on `source`, its results in `out` next to the file; `changes` are fields by section."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"image_size": 32, "config": MODEL_CONFIG},
        "tokenizer": {"vocab_size": 200, "min_frequency": 1},
        "data": {"source": str(source), "cache_dir": str(path.parent / "arrow")},
        "training": {
            "output_dir": str(path.parent / "out"),
            "per_device_train_batch_size": 2,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "report_to": "none",
            "disable_tqdm": True,
            "generation_num_beams": 1,
            "generation_max_new_tokens": 6,
        },
    }
    for section, fields in changes.items():
        sections[section] |= fields
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
    return path


def log_history(output: Path) -> list[dict[str, Any]]:
    """What a run logged, of `trainer_state.json`."""
    return json.loads((output / "trainer_state.json").read_text())["log_history"]


def losses(output: Path) -> dict[int, float]:
    """The losses of a run by step."""
    return {row["step"]: row["loss"] for row in log_history(output) if "loss" in row}

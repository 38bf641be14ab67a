import json
from collections import defaultdict
from pathlib import Path

import pytest

from fusion_captioner.metrics import tokenize_caption


@pytest.fixture(scope="session")
def coco_captions(real_data: Path) -> list[list[str]]:
    """The captions of COCO's val2017 photos, a list for each photo."""
    images = defaultdict(list)
    for annotation in json.loads((real_data / "coco/annotations/references_val2017.json").read_text()):
        images[annotation["image_id"]].append(annotation["caption"])
    return list(images.values())


@pytest.fixture(scope="session")
def flickr8k_captions(real_data: Path) -> list[list[str]]:
    """The captions of Flickr8k's `val`, which are written as `dog 's ball .`, a list for each photo."""
    images = json.loads((real_data / "flickr8k" / "dataset_flickr8k.json").read_text(encoding="utf-8"))["images"]
    return [[s["raw"] for s in image["sentences"]] for image in images if image["split"] == "val"]


@pytest.fixture(scope="session")
def coco_corpus(coco_captions: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The first caption of each photo as its prediction, the others as its references; tokenized, joined by spaces."""
    tokenized = [[" ".join(tokenize_caption(caption)) for caption in captions] for captions in coco_captions]
    return [captions[0] for captions in tokenized], [captions[1:] for captions in tokenized]

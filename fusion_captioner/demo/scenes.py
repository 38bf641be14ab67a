"""The demonstration's data: a folder in COCO's layout, rendered on the spot, with captions that are true by making.

Every picture shows one or two groups of things (ball, boat, house ... in eight colours and four textures) before one
of eight backgrounds. Some pairs of kind and colour, `HELD_OUT_PAIRS`, are in validation pictures only: a model scores
there by putting together what it has seen apart, not by having seen it.

Composition is in `demo_composition`, painting in `demo_backgrounds` and `demo_drawing`, wording in `demo_captions`.
"""

import json
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from fusion_captioner.demo.backgrounds import BACKGROUNDS, draw_background
from fusion_captioner.demo.captions import CAPTIONS_PER_IMAGE, write_captions
from fusion_captioner.demo.composition import HELD_OUT_PAIRS, Scene, compose_scene
from fusion_captioner.demo.drawing import COLOURS, KINDS, draw_shadow, draw_thing

__all__ = ["HELD_OUT_PAIRS", "draw_scene", "render_coco_folder", "scenes"]

# A third of the validation pictures show a held-out pair, the others new arrangements of pairs seen in training.
_HELD_OUT_SHARE = {"train": 0.0, "val": 1 / 3}
_FIRST_ID = {"train": 1, "val": 500_001}


def draw_scene(scene: Scene, size: int, rng: Random) -> Image.Image:
    """Paint a scene.

    Args:
        scene: what is to be seen, and where.
        size: side of the picture, pixels.
        rng: source of chance for all that the captions do not speak of; the same state paints the same picture.

    Returns:
        An RGB picture, (size, size).
    """
    picture = draw_background(scene.background, size, rng)
    # What stands further down is nearer, and painted later.
    for group in sorted(scene.groups, key=lambda group: group.span[3]):
        kind = KINDS[group.kind]
        red, green, blue = (max(0, min(255, c + rng.randint(-8, 8))) for c in COLOURS[group.colour])
        flip = rng.random() < 0.5
        for box in group.boxes:
            left, top, right, bottom = (side * size for side in box)
            if not kind.airborne:
                draw_shadow(picture, (left, top, right, bottom), BACKGROUNDS[scene.background].shadow)
            draw_thing(
                picture,
                group.kind,
                (red, green, blue),
                group.texture,
                (left, top, right, bottom),
                tilt=rng.uniform(-kind.tilt, kind.tilt),
                flip=flip,
                shift=(rng.random(), rng.random()),
            )
    return picture


def scenes(split: str, count: int, seed: int) -> list[Scene]:
    """Compose the scenes of a split.

    Scene `i` depends on the seed, the split and `i` alone: a larger set begins with the smaller one.

    Args:
        split: `"train"` or `"val"`.
        count: how many.
        seed: of the set.
    """
    composed = []
    for index in range(count):
        rng = Random(f"{seed} {split} {index} scene")
        composed.append(compose_scene(rng, held_out=rng.random() < _HELD_OUT_SHARE[split]))
    return composed


def _render_split(folder: Path, split: str, count: int, seed: int, size: int) -> None:
    """Write the pictures of a split, then its annotations."""
    pictures = folder / f"{split}2017"
    pictures.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes(split, count, seed)):
        image_id = _FIRST_ID[split] + index
        file_name = f"{image_id:012d}.jpg"
        draw_scene(scene, size, Random(f"{seed} {split} {index} picture")).save(pictures / file_name, quality=90)
        images.append(
            {
                "license": 1,
                "file_name": file_name,
                "coco_url": "",
                "height": size,
                "width": size,
                "date_captured": "2026-01-01 00:00:00",
                "flickr_url": "",
                "id": image_id,
            }
        )
        for number, caption in enumerate(write_captions(scene, Random(f"{seed} {split} {index} captions"))):
            annotations.append(
                {"image_id": image_id, "id": CAPTIONS_PER_IMAGE * image_id + number, "caption": caption}
            )
    content = {
        "info": {
            "description": f"Rendered scenes, split {split}, seed {seed}",
            "url": "",
            "version": "1.0",
            "year": 2026,
            "contributor": "fusion-captioner",
            "date_created": "2026/01/01",
        },
        "images": images,
        "annotations": annotations,
        "licenses": [
            {"url": "https://creativecommons.org/publicdomain/zero/1.0/", "id": 1, "name": "CC0 1.0 Universal"}
        ],
    }
    (folder / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(content), encoding="utf-8")


def render_coco_folder(
    folder: str | Path, *, train: int = 4000, val: int = 200, seed: int = 0, size: int = 160
) -> Path:
    """Render a small captioning data set in COCO's own layout.

    Writes `train2017/*.jpg`, `val2017/*.jpg`, `annotations/captions_train2017.json` and
    `annotations/captions_val2017.json` with five captions per image. The folder appears when it is whole.

    Args:
        folder: where to; made if it is missing.
        train: number of training pictures.
        val: number of validation pictures, a third of which show one of `HELD_OUT_PAIRS`.
        seed: the same seed gives the same files.
        size: side of the square pictures, pixels.

    Returns:
        `folder` as a path.

    Raises:
        ValueError: for a number out of range.
        FileExistsError: if the folder holds something already.
    """
    for name, value, least, most in (("train", train, 1, 499_999), ("val", val, 1, 499_999), ("size", size, 64, 1024)):
        if not least <= value <= most:
            raise ValueError(f"`{name}` ({value}) must be between {least} and {most}.")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"`folder` ({folder}) is not an empty folder: name a new one, or delete it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Rendered under another name and renamed, so that the folder is complete when it exists.
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as unfinished:
        whole = Path(unfinished) / folder.name
        (whole / "annotations").mkdir(parents=True)
        _render_split(whole, "train", train, seed, size)
        _render_split(whole, "val", val, seed, size)
        if folder.exists():
            folder.rmdir()
        whole.rename(folder)
    return folder

"""How many files of the package one caption and one short training run pass, and how often calls move between the
files.
    python benchmarks/call_moves.py [PHOTO.jpg]

A move is a call into another file of the package than that of the innermost function of the package still running in
the thread, whatever foreign code lies between, such as torch's `Module.__call__`. Each command runs twice and the
second run is counted, so that imports, and the registration with transformers that they start, are left out.
"""

import json
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import FrameType

from synthetic_photos import write_photos

import fusion_captioner
from fusion_captioner.cli import main as command

VISION = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]}
MODEL = {"vision_config": VISION, "hidden_size": 16, "num_attention_heads": 2, "projection_dim": 8}
TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "generation_num_beams": 1,
    "generation_max_new_tokens": 4,
}


def calls(run: Callable[[], object], package: Path) -> tuple[set[str], int]:
    """The files of the folder `package` that have a function called by `run`, and the number of moves."""
    files: set[str] = set()
    moves = 0
    running: dict[int, list[str]] = defaultdict(list)  # thread → files of the package's functions, innermost last

    def watch(frame: FrameType, event: str, _: object) -> None:
        nonlocal moves
        file = frame.f_code.co_filename
        if event not in ("call", "return") or not file.startswith(f"{package}/"):
            return
        stack = running[threading.get_ident()]
        if event == "call":
            files.add(file)
            moves += bool(stack) and stack[-1] != file
            stack.append(file)
        elif stack:
            stack.pop()

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return files, moves


def training_run(folder: Path) -> list[str]:
    """The command that trains a tiny captioner for two steps, on four pictures of noise in COCO's layout."""
    (folder / "annotations").mkdir(parents=True)
    for split, number in (("train2017", 4), ("val2017", 2)):
        (folder / split).mkdir()
        names = [Path(path).name for path in write_photos(folder / split, number, 64, 48)]
        images = [{"id": index, "file_name": name} for index, name in enumerate(names)]
        captions = [{"id": image["id"], "image_id": image["id"], "caption": "a picture of noise"} for image in images]
        annotations = {"images": images, "annotations": captions}
        (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(annotations))
    data = {"source": str(folder), "layout": "coco", "cache_dir": str(folder / "cache")}
    training = TRAINING | {"output_dir": str(folder / "out"), "report_to": "none", "disable_tqdm": True}
    recipe = {"model": {"image_size": 32, "config": MODEL}, "data": data, "training": training}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return ["train", str(folder / "recipe.yaml")]


with tempfile.TemporaryDirectory() as name:
    photo = sys.argv[1] if len(sys.argv) > 1 else write_photos(Path(name), 1, 640, 480)[0]
    caption = ["caption", photo, "--runtime", "torch", "--max-new-tokens", "8"]
    print("| run | files | moves |\n|---|---|---|")
    for title, commands in (
        ("caption", [caption] * 2),
        ("training", [training_run(Path(name, turn)) for turn in "ab"]),
    ):
        with redirect_stdout(StringIO()):
            command(commands[0])
            files, moves = calls(lambda again=commands[1]: command(again), Path(fusion_captioner.__file__).parent)
        print(f"| {title} | {len(files)} | {moves} |")

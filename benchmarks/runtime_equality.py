"""Captions of each export, and of torch in other types, compared with torch in float32, and the CIDEr-D of all.

    fusion-captioner export runs/captioner --to openvino --out exported
    fusion-captioner export runs/captioner --to openvino --int8 --calibration photos/ --out exported-int8
    python benchmarks/runtime_equality.py --checkpoint runs/captioner --export exported --export exported-int8 \\
        --source flickr8k [--split val] [--limit 200] [--beams 1 3]
    python benchmarks/runtime_equality.py --checkpoint runs/captioner --dtype bfloat16 --source flickr8k

Every system reads the same image files, in the same batches, and captions them with the checkpoint's own settings, as
the command `caption` does. The table has the captions that equal torch's word for word; CIDEr-D against the split's
references, and how much of torch's is lost; and the seconds, for guidance: `captioning_speed.py` measures speed.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.inference.exported_captioner import ExportedCaptioner
from fusion_captioner.inference.torch_captioner import TorchCaptioner
from fusion_captioner.metrics.caption_scores import score_captions
from fusion_captioner.process_setup import keep_freed_memory


def captions_of(
    captioner: Any, images: list[Any], beams: int, batch_size: int, name: str, language: str | None = None
) -> tuple[list[str], float]:
    """The best caption of each image, and the seconds that they took."""
    captions: list[str] = []
    # as the command does: the captioner's own length penalty is one of beam search
    settings = {"num_beams": beams, "max_new_tokens": 30} | ({"length_penalty": 1.0} if beams == 1 else {})
    start = time.perf_counter()
    for first in tqdm(range(0, len(images), batch_size), desc=f"{name}, beam {beams}", disable=None):
        batch = images[first : first + batch_size]
        captions += [texts[0] for texts in captioner.caption(batch, "", language=language, **settings)]
    return captions, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="captioner of this package, for torch")
    parser.add_argument("--export", action="append", default=[], metavar="FOLDER", help="export; may be repeated")
    parser.add_argument("--dtype", action="append", default=[], help="on torch, as of `caption`; may be repeated")
    parser.add_argument("--source", required=True, help="data, as for `evaluate`")
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--language", metavar="CODE", help="of the captions (default: the captioner's first)")
    parser.add_argument("--limit", type=int, help="the first so many images only")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3], help="1 is greedy (default: 1 3)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: 8")
    parser.add_argument("--threads", type=int, help="of every system (default: as many as there are cores)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    keep_freed_memory()

    rows = load_caption_dataset(options.source)[options.split]
    if options.limit is not None:
        rows = rows.select(range(min(options.limit, len(rows))))
    images = [image["bytes"] or image["path"] for image in rows["image"]]
    references = list(rows["captions"])
    figures: list[dict[str, Any]] = []
    print("| | search | equal captions | CIDEr | lost | s |\n|---|---|---|---|---|---|")
    systems: dict[str, Any] = {
        "torch": TorchCaptioner(options.checkpoint, num_threads=options.threads, dtype="float32")
    }
    for dtype in options.dtype:
        systems[f"torch {dtype}"] = TorchCaptioner(options.checkpoint, num_threads=options.threads, dtype=dtype)
    for folder in options.export:
        exported = ExportedCaptioner(folder, num_threads=options.threads)
        dtype = exported.description.get("dtype", "float32")
        systems[f"{exported.runtime} {dtype} ({Path(folder).name})"] = exported
    for beams in options.beams:
        expected: list[str] = []
        for name, captioner in systems.items():
            captions, seconds = captions_of(captioner, images, beams, options.batch_size, name, options.language)
            expected = expected or captions
            equal = sum(caption == other for caption, other in zip(captions, expected, strict=True))
            cider = score_captions(captions, references, metrics=("CIDEr",))["CIDEr"]
            of_torch = figures[-1]["torch_CIDEr"] if name != "torch" else cider
            lost = 1 - cider / of_torch
            search = "greedy" if beams == 1 else f"beam {beams}"
            print(f"| {name} | {search} | {equal} of {len(captions)} | {cider:.4f} | {lost:.2%} | {seconds:.1f} |")
            figures.append(
                {
                    "system": name,
                    "beams": beams,
                    "images": len(captions),
                    "equal_captions": equal,
                    "CIDEr": cider,
                    "torch_CIDEr": of_torch,
                    "seconds": seconds,
                }
            )
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

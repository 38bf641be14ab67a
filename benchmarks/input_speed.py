"""Photos a second per core, from JPEG file to pixel values, beside plain Pillow and transformers' Pillow image
processor.

    python benchmarks/input_speed.py [--image-size 256] [--json FILE]

The photos are synthetic (see synthetic_photos.py) and lie in a temporary folder, which the operating system keeps in
memory: what is measured is decoding and resizing, no disk. The peer opens each photo with Pillow as RGB and hands it
to `ViTImageProcessorPil` with the same size, filter, mean and deviation. Both in turn, photo by photo; the median of
rounds. Then this package once more with a thread a core, which shows what threads lose to one another. The last column
is how far the pixels of the two lie apart, in grey levels, where a shortcut of decoding would show.
"""

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, features
from synthetic_photos import write_photos
from transformers import __version__ as transformers_version
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fusion_captioner.image_loading import images_to_pixel_values
from fusion_captioner.inference.launched_process import usable_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=256, help="side of what the model takes (default: 256)")
    parser.add_argument(
        "--megapixels",
        type=float,
        nargs="+",
        default=[12, 2, 0.1875],
        help="sizes of the photos (default: 12 2 0.1875)",
    )
    parser.add_argument("--photos", type=int, default=8, help="photos of each size (default: 8)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: 5)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: as many as cores")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    size = {"height": options.image_size, "width": options.image_size}
    settings: dict[str, Any] = {
        "do_resize": True,
        "size": size,
        "resize_mode": "squash",
        "resample": Image.Resampling.BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_DEFAULT_MEAN,
        "image_std": IMAGENET_DEFAULT_STD,
    }
    peer = ViTImageProcessorPil(
        size=size,
        resample=Image.Resampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )

    def ours(path: str) -> np.ndarray:
        return images_to_pixel_values([path], settings)

    def theirs(path: str) -> np.ndarray:
        with Image.open(path) as image:
            return peer(image.convert("RGB"), return_tensors="np")["pixel_values"]

    rows = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.threads) as threads:
        for megapixels in options.megapixels:
            height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
            width = height * 4 // 3
            paths = write_photos(Path(folder), options.photos, width, height)
            apart = np.abs(ours(paths[0]) - theirs(paths[0]))[0] * np.array(IMAGENET_DEFAULT_STD)[:, None, None] * 255
            seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "threads": []}
            for _ in range(options.rounds):
                spent = dict.fromkeys(seconds, 0.0)
                for path in paths:
                    for side, prepare in (("ours", ours), ("theirs", theirs)):
                        start = time.perf_counter()
                        prepare(path)
                        spent[side] += time.perf_counter() - start
                start = time.perf_counter()
                list(threads.map(ours, paths * options.threads))
                spent["threads"] = time.perf_counter() - start
                for side, total in spent.items():
                    seconds[side].append(total)
            rates = {side: options.photos / statistics.median(times) for side, times in seconds.items()}
            rows.append(
                {
                    "size": [width, height],
                    "kilobytes": sum(Path(path).stat().st_size for path in paths) / len(paths) / 1000,
                    "ours_per_second": rates["ours"],
                    "ours_per_second_and_thread_with_all_threads": rates["threads"],
                    "theirs_per_second": rates["theirs"],
                    "ratio": rates["ours"] / rates["theirs"],
                    "mean_difference": float(apart.mean()),
                }
            )
    about = {
        "image_size": options.image_size,
        "threads": options.threads,
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.version_feature("libjpeg_turbo"),
        "transformers": transformers_version,
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"\n| photos | KB | this package, photos/s | the same with {options.threads} threads, each | ", end="")
    print("Pillow + transformers | times faster | grey levels apart |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['size'][0]} × {row['size'][1]} | {row['kilobytes']:.0f} "
            f"| {row['ours_per_second']:.1f} | {row['ours_per_second_and_thread_with_all_threads']:.1f} "
            f"| {row['theirs_per_second']:.1f} | {row['ratio']:.1f} | {row['mean_difference']:.2f} |"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

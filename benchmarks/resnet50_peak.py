"""How much of the machine's matrix-product peak the ResNet-50 image encoder reaches on each runtime.

    python benchmarks/resnet50_peak.py [--runtimes torch onnx openvino] [--batch 8] [--json FILE]

The default captioner, whose image encoder is transformers' ResNet-50, with random weights, which take the same time:
pictures of 224 pixels to projected regions, all in float32. Operations are counted by torch.utils.flop_counter. The
peak is the best of square products, measured before, between and after the runtimes, which share nothing but the
machine.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from training_speed import matrix_product_peak

from fusion_captioner import FusionCaptionerConfig, FusionCaptionerForConditionalGeneration
from fusion_captioner.export.captioner import EXPORTERS
from fusion_captioner.export.parts import ImagePart, export_image_part
from fusion_captioner.inference.exported_captioner import IMAGE_PART
from fusion_captioner.inference.runtimes import RUNTIMES
from fusion_captioner.process_setup import keep_freed_memory

SIZE = 224


def encoder_on(
    runtime: str, model: FusionCaptionerForConditionalGeneration, pixels: torch.Tensor, threads: int, folder: Path
) -> Callable[[], object]:
    """A function that runs the image part once."""
    if runtime == "torch":
        part = ImagePart(model)

        @torch.inference_mode()
        def run() -> object:
            return part(pixels)

        return run
    program, _ = export_image_part(model, (SIZE, SIZE))
    EXPORTERS[runtime](program, [["images", 3, SIZE, SIZE]], folder / IMAGE_PART)
    exported, array = RUNTIMES[runtime](folder, IMAGE_PART, threads), pixels.numpy()
    return lambda: exported((array,))


def main() -> None:
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runtimes", nargs="+", choices=["torch", *RUNTIMES], default=["torch", *RUNTIMES], help="default: all"
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures at a time (default: 8)")
    parser.add_argument("--repeats", type=int, default=9, help="measurements of each (default: 9)")
    parser.add_argument("--threads", type=int, default=len(cores), help="and cores (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    if not 1 <= options.threads <= len(cores):
        parser.error(f"--threads ({options.threads}) must be 1 to {len(cores)}, the cores there are")
    os.sched_setaffinity(0, cores[: options.threads])
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the commands do

    torch.manual_seed(0)
    model = FusionCaptionerForConditionalGeneration(FusionCaptionerConfig()).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((options.batch, 3, SIZE, SIZE), np.float32))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ImagePart(model)(pixels)
    flop = counter.get_total_flops()
    seconds, peaks = {}, [matrix_product_peak(torch.float32)]
    for runtime in options.runtimes:
        with tempfile.TemporaryDirectory() as folder:
            run = encoder_on(runtime, model, pixels, options.threads, Path(folder))
            times = []
            for _ in range(options.repeats + 1):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
        seconds[runtime] = statistics.median(times[1:])  # the first is warm-up
        peaks.append(matrix_product_peak(torch.float32))
    peak = max(peaks)

    print(
        f"{date.today().isoformat()}, {options.threads} threads, batch {options.batch}, "
        f"{flop / options.batch / 1e9:.2f} GFLOP an image, matrix-product peak {peak / 1e9:.0f} GFLOP/s"
    )
    print("\n| | images/s | GFLOP/s | of the peak |\n|---|---|---|---|")
    for runtime, each in seconds.items():
        name = f"{runtime} {version('onnxruntime' if runtime == 'onnx' else runtime)}"
        print(f"| {name} | {options.batch / each:.2f} | {flop / each / 1e9:.0f} | {flop / each / peak:.0%} |")
    if options.json:
        figures = {
            "batch": options.batch,
            "threads": options.threads,
            "flop_an_image": flop / options.batch,
            "flop_per_second_peak": peak,
            "images_per_second": {runtime: options.batch / each for runtime, each in seconds.items()},
            "share_of_the_peak": {runtime: flop / each / peak for runtime, each in seconds.items()},
        }
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

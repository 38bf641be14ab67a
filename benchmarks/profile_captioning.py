"""Where the time of a caption goes, from JPEG file to text, and how far each stage is from what the machine could do.

    fusion-captioner export runs/captioner --to openvino --out exported
    python benchmarks/profile_captioning.py --checkpoint runs/captioner [--export exported ...] [--json FILE]

Each system runs in a process of its own as in captioning_speed.py, whose photos and stages these are: greedy, 15 new
tokens. The first is torch without what this package does to be faster (see `TorchBefore`). The ceilings are measured
in the same run, before and after, the best counting: floating-point operations a second
of square float32 products, and bytes per second of a matrix of 256 MiB times a vector, which is what generation does
with its weights. A stage's floor is the longer of its operations at the one, and of its weights at the other, each
read once a batch by the encoder and once a token by the decoder. (Weights that stay in the processor's cache can be
read faster than that.) An int8 export has the operations and weights of its checkpoint in float32. Decoding and
resizing have no floor here.
"""

import argparse
import json
import os
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from captioning_speed import JOBS, SYSTEMS, Run, Stopwatch, TorchSystem, in_its_own_process

STAGES = {"input": "decode, resize", "encoder": "image encoder", "generation": "generation"}


class TorchBefore(TorchSystem):
    """A checkpoint on torch as it was before packed weights, channels-last images, JPEG files that are decoded small
    and freed memory that stays."""

    def __init__(self, task: Run, watch: Stopwatch) -> None:
        from PIL import JpegImagePlugin

        from fusion_captioner import causal_layers, process_setup

        causal_layers.CAN_PACK = False
        process_setup.keep_freed_memory = lambda: False
        JpegImagePlugin.JpegImageFile.draft = lambda *arguments: None
        super().__init__(task | {"dtype": "float32"}, watch)
        self.model.model.image_encoder.backbone.register_forward_pre_hook(
            lambda module, inputs: (inputs[0].contiguous(), *inputs[1:])
        )


def count_work(task: Run) -> Run:
    """Floating-point operations an image, and bytes of weights, of the encoder and of generation."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from fusion_captioner import causal_layers

    causal_layers.CAN_PACK = False  # the counter does not know packed products
    system = TorchSystem(task | {"dtype": "float32"}, Stopwatch())
    inputs = system.prepare(task["photos"][:1])
    flop = {}
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            system.generate(inputs, 1, task["tokens"])
        flop["generation"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            system.model.model.project_regions(system.model.get_image_hidden_states(inputs["pixel_values"]))
        flop["encoder"] = counter.get_total_flops()
    flop["generation"] -= flop["encoder"]
    weights = {name: weight.numel() * 4 for name, weight in system.model.named_parameters()}
    encoder = sum(size for name, size in weights.items() if ".image_encoder." in name)
    return {"flop": flop, "weight_bytes": {"encoder": encoder, "generation": sum(weights.values()) - encoder}}


def measure_ceilings(task: Run) -> Run:
    """Operations and bytes per second."""
    import time

    import torch
    from training_speed import matrix_product_peak

    torch.set_num_threads(task["threads"])
    matrix, vector = torch.ones(8192, 8192), torch.ones(8192)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        matrix @ vector
        best = max(best, matrix.numel() * 4 / (time.perf_counter() - start))
    return {"flop_per_second": matrix_product_peak(torch.float32), "bytes_per_second": best}


SYSTEMS["before"] = TorchBefore
JOBS |= {"count_work": count_work, "measure_ceilings": measure_ceilings}


def measure(options: argparse.Namespace, folder: Path) -> tuple[Run, list[Run]]:
    """The ceilings, and the stages of every system."""
    from synthetic_photos import write_photos

    task: Run = {
        "name": "the checkpoint",
        "path": options.checkpoint,
        "photos": write_photos(folder, max(options.batches), 640, 480),
        "batches": options.batches,
        "beams": [1],
        "tokens": options.tokens,
        "repeats": options.repeats,
        "threads": options.threads,
    }
    before = in_its_own_process("measure_ceilings", task, __file__)[0]
    work = in_its_own_process("count_work", task, __file__)[0]
    systems = []
    runs = [("torch, before", {"kind": "before"}), ("torch", {"kind": "checkpoint"})]
    for path in options.export or []:
        description = json.loads((Path(path) / "exported_captioner.json").read_text())
        name = f"{description['runtime']} {description.get('dtype', 'float32')}"
        runs.append((name, {"kind": "export", "path": path}))
    for name, own in runs:
        systems.append({"name": name} | in_its_own_process("time", task | own | {"name": name}, __file__)[0])
    after = in_its_own_process("measure_ceilings", task, __file__)[0]
    ceilings = {name: max(before[name], after[name]) for name in before}
    for system in systems:
        for setting in system["settings"]:
            setting["stages"] = [
                stage_figures(stage, seconds, setting["batch"], options.tokens, work, ceilings)
                for stage, seconds in setting["seconds_an_image"].items()
            ]
    return ceilings | work, systems


def stage_figures(stage: str, seconds: float, batch: int, tokens: int, work: Run, ceilings: Run) -> Run:
    """What a stage takes an image, and what it would take at the machine's ceilings."""
    figures: dict[str, Any] = {"stage": stage, "seconds": seconds}
    if stage in work["flop"]:
        flop = work["flop"][stage]
        read = work["weight_bytes"][stage] * (tokens if stage == "generation" else 1) / batch
        floor = max(flop / ceilings["flop_per_second"], read / ceilings["bytes_per_second"])
        figures |= {
            "flop": flop,
            "share_of_the_product_peak": flop / seconds / ceilings["flop_per_second"],
            "bytes": read,
            "share_of_the_bandwidth": read / seconds / ceilings["bytes_per_second"],
            "floor_seconds": floor,
        }
    return figures


def print_tables(about: Run, ceilings: Run, systems: list[Run]) -> None:
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items()))
    print(
        f"ceilings: {ceilings['flop_per_second'] / 1e9:.0f} GFLOP/s of matrix products, "
        f"{ceilings['bytes_per_second'] / 1e9:.1f} GB/s from memory"
    )
    print(
        "\n| | batch | stage | ms an image | share of the time | GFLOP | of the product peak | MB of weights "
        "| of the bandwidth | floor, ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for system in systems:
        for setting in system["settings"]:
            total = sum(stage["seconds"] for stage in setting["stages"])
            for stage in setting["stages"]:
                cells = ["–"] * 5
                if "flop" in stage:
                    cells = [
                        f"{stage['flop'] / 1e9:.3f}",
                        f"{stage['share_of_the_product_peak']:.0%}",
                        f"{stage['bytes'] / 1e6:.1f}",
                        f"{stage['share_of_the_bandwidth']:.0%}",
                        f"{stage['floor_seconds'] * 1000:.2f}",
                    ]
                print(
                    f"| {system['name']} | {setting['batch']} | {STAGES[stage['stage']]} "
                    f"| {stage['seconds'] * 1000:.2f} | {stage['seconds'] / total:.0%} | {' | '.join(cells)} |"
                )


def main() -> None:
    if sys.argv[1:2] == ["--job"]:
        print(json.dumps(JOBS[sys.argv[2]](json.loads(sys.argv[3]))))
        return
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="FOLDER", help="captioner of this package, for torch")
    parser.add_argument("--export", metavar="FOLDER", action="append", help="export of it; may be repeated")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="default: 1 8")
    parser.add_argument("--tokens", type=int, default=15, help="new tokens of every caption (default: 15)")
    parser.add_argument("--repeats", type=int, default=9, help="measurements of each setting (default: 9)")
    parser.add_argument("--threads", type=int, default=len(cores), help="and cores of every system (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    if not 1 <= options.threads <= len(cores):
        parser.error(f"--threads ({options.threads}) must be 1 to {len(cores)}, the cores there are")
    os.sched_setaffinity(0, cores[: options.threads])  # the processes that are measured inherit it
    with tempfile.TemporaryDirectory() as folder:
        ceilings, systems = measure(options, Path(folder))
    about = {"date": date.today().isoformat(), "threads": options.threads, "torch": version("torch")}
    print_tables(about, ceilings, systems)
    if options.json:
        Path(options.json).write_text(json.dumps(about | ceilings | {"systems": systems}, indent=2) + "\n")


if __name__ == "__main__":
    main()

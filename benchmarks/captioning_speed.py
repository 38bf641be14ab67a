"""Captions per second, from JPEG file to text, compared with BLIP-base (384 px), GIT-base and ViT-GPT2. Linux
only.

    fusion-captioner export runs/captioner --to openvino --out exported
    python benchmarks/captioning_speed.py --checkpoint runs/captioner --export exported [--export ...] [--json FILE]

Every system runs in a process of its own, on the same cores, reads the same synthetic photos and writes exactly 15 new
tokens, greedily and with beams, in batches of several sizes. The systems take turns, since a machine that others share
is slower in one minute than in the next: in each turn a system captions the batch four times, the first of which does
not count. Times are medians; "times faster" is the median of the ratios within a turn. The peers have random weights
of the published sizes and run in the faster of fp32 and bf16, which is tried first. This package runs as its command
does.

A time is split into decoding and resizing, the image encoder (with what is projected once an image), and generation,
to text. FLOPs are those of an image with 15 tokens, counted by torch.utils.flop_counter; an export has those of the
checkpoint that it was made of. "Peak" is the most resident memory that a process has had so far, settings in the order
of the tables: freed memory stays with a process, which is faster (see process_setup.py), for peers as well.

The cold start is a process of its own from start to end: for this package the command `caption`, whose captions end
where they end, for a peer a script that imports transformers, loads the model and captions one photo.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

# Everything heavy is imported where it is used: the processes that are measured run this file, too.

Run = dict[str, Any]

REPEATS = 3  # that count, in a turn


class Stopwatch:
    """Adds up the time in functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **settings: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **settings)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


class TorchSystem:
    """A checkpoint of this package on torch."""

    def __init__(self, task: Run, watch: Stopwatch) -> None:
        from fusion_captioner.inference.torch_captioner import TorchCaptioner
        from fusion_captioner.process_setup import keep_freed_memory

        keep_freed_memory()
        self.captioner = TorchCaptioner(task["path"], num_threads=task["threads"], dtype=task.get("dtype", "auto"))
        self.model = self.captioner.model
        self.model.get_image_hidden_states = watch.around(self.model.get_image_hidden_states)
        self.model.model.score_concepts = watch.around(self.model.model.score_concepts)
        self.model.model.project_regions = watch.around(self.model.model.project_regions)

    def prepare(self, paths: Sequence[str]) -> Any:
        return self.captioner.processor(images=list(paths), text=[""] * len(paths), return_tensors="pt")

    def generate(self, inputs: Any, beams: int, tokens: int) -> list[str]:
        rows = self.model.generate(**inputs, **forced(beams, tokens))
        return self.captioner.processor.batch_decode(rows[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class ExportedSystem:
    """An export of this package."""

    def __init__(self, task: Run, watch: Stopwatch) -> None:
        from fusion_captioner.inference.exported_captioner import ExportedCaptioner
        from fusion_captioner.process_setup import keep_freed_memory

        keep_freed_memory()
        self.captioner = ExportedCaptioner(task["path"], num_threads=task["threads"])
        self.captioner._image_part = watch.around(self.captioner._image_part)

    def prepare(self, paths: Sequence[str]) -> Any:
        return self.captioner.preprocess(paths)

    def generate(self, inputs: Any, beams: int, tokens: int) -> list[str]:
        input_ids, mask = self.captioner.encode([""] * len(inputs))
        settings = forced(beams, tokens)
        del settings["do_sample"]
        return self.captioner.decode(self.captioner.generate(inputs, input_ids, mask, **settings)[:, 1:])


class PeerSystem:
    """A model of transformers; `path` is a saved one, by default its weights are drawn."""

    def __init__(self, task: Run, watch: Stopwatch) -> None:
        import torch
        from caption_peers import PEERS
        from transformers.utils import logging

        from fusion_captioner.process_setup import keep_freed_memory

        keep_freed_memory()  # for peers as well
        logging.set_verbosity_error()
        torch.set_num_threads(task["threads"])
        peer = PEERS[task["name"]](task["tiny"])
        self.dtype = getattr(torch, task["dtype"])
        if task.get("path"):
            self.model = peer.model_class.from_pretrained(task["path"], dtype=self.dtype).eval()
        else:
            self.model = peer.build(self.dtype)
        self.image_processor, self.tokenizer = peer.image_processor, peer.tokenizer()
        vision = self.model.get_submodule(peer.vision_part)
        vision.forward = watch.around(vision.forward)

    def prepare(self, paths: Sequence[str]) -> Any:
        from PIL import Image

        images = []
        for path in paths:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
        return self.image_processor(images, return_tensors="pt")["pixel_values"].to(self.dtype)

    def generate(self, inputs: Any, beams: int, tokens: int) -> list[str]:
        import torch

        with torch.inference_mode():
            rows = self.model.generate(pixel_values=inputs, **forced(beams, tokens))
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)


SYSTEMS: dict[str, Callable[[Run, Stopwatch], Any]] = {
    "checkpoint": TorchSystem,
    "export": ExportedSystem,
    "peer": PeerSystem,
}


def forced(beams: int, tokens: int) -> dict[str, Any]:
    """Settings of `generate` for exactly so many new tokens."""
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "num_beams": beams, "do_sample": False}


# what happens in the processes that are measured


class TimedSystem:
    """A system, and the seconds that it takes to load and for the first caption."""

    def __init__(self, task: Run) -> None:
        self.task = task
        self.watch = Stopwatch()
        start = time.perf_counter()
        self.system = SYSTEMS[task["kind"]](task, self.watch)
        loaded = time.perf_counter()
        self.system.generate(self.system.prepare(task["photos"][:1]), 1, task["tokens"])
        self.found: Run = {
            "load_seconds": loaded - start,
            "first_caption_seconds": time.perf_counter() - loaded,
        }

    def turn(self, beams: int, batch: int, repeats: int) -> Run:
        """Seconds by stage of each repeat, after one that does not count, and the peak of memory."""
        photos, tokens = self.task["photos"], self.task["tokens"]
        paths = [photos[index % len(photos)] for index in range(batch)]
        repeated: list[list[float]] = []
        for _ in range(repeats + 1):
            self.watch.seconds, start = 0.0, time.perf_counter()
            inputs = self.system.prepare(paths)
            prepared = time.perf_counter()
            texts = self.system.generate(inputs, beams, tokens)
            end = time.perf_counter()
            repeated.append([prepared - start, self.watch.seconds, end - prepared - self.watch.seconds])
        if len(texts) != batch:
            raise RuntimeError(f"{self.task['name']}: {len(texts)} captions of {batch} photos.")
        return {"stages": repeated[1:], "peak_bytes": peak_resident()}


def figures_of(beams: int, batch: int, turns: list[Run]) -> Run:
    """Of a setting: seconds per image, by stage; those of each turn; and peak memory."""
    stages = [stages for turn in turns for stages in turn["stages"]]
    parts = [statistics.median(column) / batch for column in zip(*stages)]
    return {
        "beams": beams,
        "batch": batch,
        "images_per_second": batch / statistics.median(map(sum, stages)),
        "seconds_an_image": dict(zip(("input", "encoder", "generation"), parts)),
        "seconds_of_turns": [statistics.median(map(sum, turn["stages"])) / batch for turn in turns],
        "peak_bytes": turns[-1]["peak_bytes"],
    }


def time_system(task: Run) -> Run:
    """All settings of a system, one after the other."""
    timed = TimedSystem(task)
    settings = [(beams, batch) for beams in task["beams"] for batch in task["batches"]]
    return timed.found | {
        "settings": [figures_of(*setting, [timed.turn(*setting, task["repeats"])]) for setting in settings]
    }


def take_turns(task: Run) -> Run:
    """Say what loading took; then, for each line of standard input, take the turn that it describes and say what it
    took."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    timed = TimedSystem(task)
    print(json.dumps(timed.found), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(timed.turn(**json.loads(line))), file=answers, flush=True)
    return {}


def examine(task: Run) -> Run:
    """What is asked of a system outside of its measurement: FLOPs an image; of a peer the faster type and a
    checkpoint."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from fusion_captioner import causal_layers

    causal_layers.CAN_PACK = False  # the counter does not know packed products
    found: Run = {}
    if task["kind"] == "peer":
        seconds = {}
        for dtype in ("float32", "bfloat16"):
            system = PeerSystem(task | {"dtype": dtype}, Stopwatch())
            times = []
            for _ in range(3):
                start = time.perf_counter()
                system.generate(system.prepare(task["photos"][:1]), 1, task["tokens"])
                times.append(time.perf_counter() - start)
            seconds[dtype] = statistics.median(times[1:])
        found = {"dtype": min(seconds, key=lambda dtype: seconds[dtype]), "seconds_by_dtype": seconds}
        system.model.to(getattr(torch, found["dtype"])).save_pretrained(task["save"])
    else:
        from fusion_captioner.fingerprints import fingerprint
        from fusion_captioner.hardware import faster_dtype

        system = TorchSystem(task | {"dtype": "float32"}, Stopwatch())
        dtype = str(faster_dtype("cpu")).removeprefix("torch.")  # of the image encoder, as a user's would be
        found = {"dtype": dtype, "fingerprint": fingerprint(weights=system.model.state_dict(), digest_size=16)}
    system.dtype = torch.float32
    system.model.float()
    found["parameters"] = sum(weight.numel() for weight in system.model.parameters())
    found["flop"] = {}
    inputs = system.prepare(task["photos"][:1])
    for beams in task["beams"]:
        # attention as plain products, which the counter knows on every device
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            system.generate(inputs, beams, task["tokens"])
        found["flop"][str(beams)] = counter.get_total_flops()
    return found


def caption_one(task: Run) -> Run:
    """The script of a peer that captions one photo."""
    system = PeerSystem(task, Stopwatch())
    return {"caption": system.generate(system.prepare(task["photos"][:1]), 1, task["tokens"])[0]}


JOBS: dict[str, Callable[[Run], Run]] = {
    "time": time_system,
    "take_turns": take_turns,
    "examine": examine,
    "caption_one": caption_one,
}


def peak_resident() -> int:
    """Bytes, since the process began."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM; peak memory is known on Linux only.")


# what happens in the process that measures


def in_its_own_process(job: str, task: Run, script: str = __file__) -> tuple[Run, float]:
    """What the job returns, and the seconds from start to end of its process."""
    start = time.perf_counter()
    finished = subprocess.run([sys.executable, script, "--job", job, json.dumps(task)], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if finished.returncode:
        raise RuntimeError(f"{job} of {task['name']} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1]), seconds


class LiveSystem:
    """A system in a process of its own, which waits for its turns. What it says first is what loading took."""

    def __init__(self, task: Run, folder: Path) -> None:
        self.name = task["name"]
        self.errors = folder / f"{self.name}.errors"
        command = [sys.executable, __file__, "--job", "take_turns", json.dumps(task)]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.found = self._answer()

    def turn(self, **settings: int) -> Run:
        assert self.process.stdin is not None
        print(json.dumps(settings), file=self.process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        self.process.communicate()

    def _answer(self) -> Run:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        raise RuntimeError(f"{self.name} failed:\n{self.errors.read_text()}")


def time_in_turns(tasks: list[Run], turns: int, folder: Path) -> list[Run]:
    """What [`time_system`] finds of each task, measured in turns."""
    live = []
    for task in tasks:
        print(f"{task['name']}: loading", file=sys.stderr)
        live.append(LiveSystem(task, folder))
    settings: list[list[Run]] = [[] for _ in tasks]
    for beams in tasks[0]["beams"]:
        for batch in tasks[0]["batches"]:
            print(f"{beams} beams, batch {batch}", file=sys.stderr)
            rounds = [[each.turn(beams=beams, batch=batch, repeats=REPEATS) for each in live] for _ in range(turns)]
            for own, of_system in zip(settings, zip(*rounds)):
                own.append(figures_of(beams, batch, list(of_system)))
    for each in live:
        each.end()
    return [each.found | {"settings": own} for each, own in zip(live, settings)]


def run_command(
    model: str, runtime: str, images: Sequence[str], beams: int, tokens: int, out: str
) -> tuple[float, int]:
    """Seconds of the command `caption`, and the most memory it had, shared pages counted by halves, thirds, ..."""
    command = [sys.executable, "-m", "fusion_captioner.cli", "caption", *images, "--model", model, "--out", out]
    flags = ["--runtime", runtime, "--beams", str(beams), "--max-new-tokens", str(tokens), "--batch-size", "8"]
    Path(out).unlink(missing_ok=True)
    start = time.perf_counter()
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, proportional_set_size(process.pid))
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"caption failed:\n{process.stderr.read() if process.stderr else ''}")
    return seconds, most


def proportional_set_size(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (ProcessLookupError, FileNotFoundError):  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measure(options: argparse.Namespace, folder: Path) -> list[Run]:
    """All figures of every system."""
    from synthetic_photos import write_photos

    (folder / "photos").mkdir()
    photos = write_photos(folder / "photos", options.photos, *options.photo_size)
    shared = {
        "photos": photos,
        "batches": options.batches,
        "beams": options.beams,
        "tokens": options.tokens,
        "threads": options.threads,
        "tiny": options.tiny,
    }
    tasks: list[Run] = []
    if options.checkpoint:
        tasks.append({"name": "this package, torch", "kind": "checkpoint", "path": options.checkpoint})
    for path in options.export or []:
        runtime = json.loads((Path(path) / "exported_captioner.json").read_text())["runtime"]
        tasks.append({"name": f"this package, {runtime} ({Path(path).name})", "kind": "export", "path": path})
    tasks += [{"name": name, "kind": "peer"} for name in options.peers]

    systems: list[Run] = []
    for task in tasks:
        print(f"{task['name']}: type and operations", file=sys.stderr)
        task |= shared
        system: Run = {"name": task["name"], "kind": task["kind"]}
        if task["kind"] == "export":
            description = json.loads((Path(task["path"]) / "exported_captioner.json").read_text())
            same = [each for each in systems if each.get("fingerprint") == description["checkpoint"]]
            flop = same[0]["flop"] if same else None
            system |= {"dtype": description["dtype"], "runtime": description["runtime"], "flop": flop}
        else:
            saved = {"save": str(folder / task["name"])} if task["kind"] == "peer" else {}
            system |= in_its_own_process("examine", task | saved)[0]
        task["dtype"] = system["dtype"]
        systems.append(system)
    for system, found in zip(systems, time_in_turns(tasks, options.turns, folder)):
        system |= found
    for system, task in zip(systems, tasks):
        print(f"{task['name']}: cold start", file=sys.stderr)
        if task["kind"] == "peer":
            task["path"] = str(folder / task["name"])
            starts = [in_its_own_process("caption_one", task)[1] for _ in range(options.starts)]
        else:
            out = str(folder / "captions.jsonl")
            model = task["path"], "torch" if task["kind"] == "checkpoint" else system["runtime"]
            runs = [run_command(*model, photos[:1], 1, options.tokens, out) for _ in range(options.starts)]
            starts = [seconds for seconds, _ in runs]
            system["command_one_photo_peak_pss"] = max(most for _, most in runs)
            seconds, most = run_command(*model, [str(folder / "photos")], 1, options.tokens, out)
            system |= {"command_folder_seconds": seconds, "command_folder_peak_pss": most}
        system["cold_start_seconds"] = statistics.median(starts)
    return systems


def ratios(systems: list[Run]) -> None:
    """Adds to each setting how many times faster it is than the fastest peer, in the median of turns, and how many
    times fewer FLOPs it takes."""
    for place, setting in enumerate(systems[0]["settings"]):
        peers = [system for system in systems if system["kind"] == "peer"]
        if not peers:
            return
        fastest = max(peers, key=lambda peer: peer["settings"][place]["images_per_second"])
        beams = str(setting["beams"])
        for system in systems:
            own = system["settings"][place]
            own["fastest_peer"] = fastest["name"]
            turns = zip(fastest["settings"][place]["seconds_of_turns"], own["seconds_of_turns"])
            own["speed_ratio"] = statistics.median(of_peer / of_system for of_peer, of_system in turns)
            own["flop_ratio"] = fastest["flop"][beams] / system["flop"][beams] if system["flop"] else None


def print_tables(about: Run, systems: list[Run]) -> None:
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items()))
    for place, setting in enumerate(systems[0]["settings"]):
        search = "greedy" if setting["beams"] == 1 else f"beam {setting['beams']}"
        print(f"\n{search}, batch {setting['batch']}; milliseconds per image\n")
        print(
            "| | images/s | decode, resize | encoder | generation | its share | times faster | FLOP ratio | peak MB |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for system in systems:
            own = system["settings"][place]
            parts = [seconds * 1000 for seconds in own["seconds_an_image"].values()]
            speed, flop = own.get("speed_ratio"), own.get("flop_ratio")
            print(
                f"| {system['name']} | {own['images_per_second']:.2f} | {parts[0]:.1f} | {parts[1]:.1f} "
                f"| {parts[2]:.1f} | {parts[2] / sum(parts):.0%} "
                f"| {f'{speed:.1f}' if speed else '–'} "
                f"| {f'{flop:.1f}' if flop else '–'} | {own['peak_bytes'] / 1e6:.0f} |"
            )
    searches = ", ".join("greedy" if beams == "1" else f"beam {beams}" for beams in about["beams"].split())
    print(f"\n| | dtype | parameters, M | GFLOP per image: {searches} | load, s | first caption, ms | cold start, s |")
    print("|---|---|---|---|---|---|---|")
    for system in systems:
        parameters = f"{system['parameters'] / 1e6:.1f}" if "parameters" in system else "–"
        flop = ", ".join(f"{count / 1e9:.2f}" for count in system["flop"].values()) if system["flop"] else "–"
        print(
            f"| {system['name']} | {system['dtype']} | {parameters} | {flop} | {system['load_seconds']:.2f} "
            f"| {system['first_caption_seconds'] * 1000:.0f} | {system['cold_start_seconds']:.2f} |"
        )
    print(f"\n| the command `caption` | one photo, peak PSS MB | {about['photos']} photos, s | their peak PSS MB |")
    print("|---|---|---|---|")
    for system in systems:
        if system["kind"] != "peer":
            print(
                f"| {system['name']} | {system['command_one_photo_peak_pss'] / 1e6:.0f} "
                f"| {system['command_folder_seconds']:.2f} | {system['command_folder_peak_pss'] / 1e6:.0f} |"
            )


def main() -> None:
    if sys.argv[1:2] == ["--job"]:
        print(json.dumps(JOBS[sys.argv[2]](json.loads(sys.argv[3]))))
        return
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", metavar="FOLDER", help="captioner of this package, for torch")
    parser.add_argument("--export", metavar="FOLDER", action="append", help="export of it; may be repeated")
    peers = ["BLIP-base", "GIT-base", "ViT-GPT2"]
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers, help="default: all")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3], help="1 is greedy (default: 1 3)")
    parser.add_argument("--tokens", type=int, default=15, help="new tokens of every caption (default: 15)")
    parser.add_argument("--turns", type=int, default=5, help="of each system in each setting (default: 5)")
    parser.add_argument("--starts", type=int, default=3, help="cold starts of each system (default: 3)")
    parser.add_argument("--photos", type=int, default=64, help="photos to caption (default: 64)")
    parser.add_argument(
        "--photo-size", type=int, nargs=2, metavar=("W", "H"), default=[640, 480], help="default: 640 480"
    )
    parser.add_argument("--threads", type=int, default=len(cores), help="and cores of every system (default: all)")
    parser.add_argument("--tiny", action="store_true", help="peers of a few weights, to see that this works")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    if not (options.checkpoint or options.export or options.peers):
        parser.error("nothing to measure; give --checkpoint, --export or --peers")
    if not 1 <= options.threads <= len(cores):
        parser.error(f"--threads ({options.threads}) must be 1 to {len(cores)}, the cores there are")
    os.sched_setaffinity(0, cores[: options.threads])  # the processes that are measured inherit it

    from importlib.metadata import version

    with tempfile.TemporaryDirectory() as folder:
        systems = measure(options, Path(folder))
    ratios(systems)
    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    about = {
        "date": date.today().isoformat(),
        "processor": processor[0].split(": ")[1] if processor else platform.machine(),
        "threads": options.threads,
        "turns": options.turns,
        "photos": options.photos,
        "photo_size": "×".join(map(str, options.photo_size)),
        "new_tokens": options.tokens,
        "beams": " ".join(map(str, options.beams)),
        "torch": version("torch"),
        "transformers": version("transformers"),
    } | ({"tiny_peers": True} if options.tiny else {})
    print_tables(about, systems)
    if options.json:
        Path(options.json).write_text(json.dumps(about | {"systems": systems}, indent=2) + "\n")


if __name__ == "__main__":
    main()

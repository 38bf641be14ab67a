"""`make hostile`: thousands of mutated images, 200 special files and kills at random moments; prints a table.

    python tests/hostile/long_run.py [--mutations 10000] [--special 200] [--kills 50] [--seed 0]

Exit status 1 if anything was lost or duplicated, a traceback was printed, or captioning a folder took 1 GB or more.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(Path(__file__).parent)]

from images import BOMBS, CONTAINERS, UNDERSTATED, good_files, peak_kib, write_bomb  # noqa: E402
from tiny_captioner import noise, tiny_processor  # noqa: E402
from tiny_models import tiny_head, tiny_model  # noqa: E402
from tiny_recipe import losses, write_data, write_recipe  # noqa: E402

from fusion_captioner import FusionCaptionerForImageTextRetrieval  # noqa: E402

CLI = [sys.executable, "-m", "fusion_captioner.cli"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "fusion_captioner.cli"]
LIMIT_MB = 1000


def start(command: list[str], log: Path) -> subprocess.Popen:
    """The command in a group of its own, what it says in a file."""
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)


def end(process: subprocess.Popen) -> None:
    """Kill the command and all that it started: the workers of `torchrun` are in groups of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def peak_mb(command: list[str], log: Path) -> tuple[int, int]:
    """Exit status of the command, and the most that it held in memory, in MB."""
    process, peak = start(command, log), 0
    while process.poll() is None:
        with contextlib.suppress(OSError):  # it ended just now
            peak = max(peak, peak_kib(process.pid))
        time.sleep(0.05)
    return process.returncode, peak // 1024


def special_files(folder: Path, count: int, draw: random.Random) -> int:
    """`count` files that are no ordinary photos, in a folder with three that are; returns how many can be
    captioned."""
    folder.mkdir()
    for number in range(3):
        noise(folder / f"photo{number}.png", number)
    kinds = ["bomb", "empty", "text", "fifo", "dangling", "folder", "escape", "bytes", "cut", "hidden"]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        path = folder / f"{kind}{number}.png"
        if kind == "bomb":
            name = draw.choice([*BOMBS, *CONTAINERS, *UNDERSTATED])
            write_bomb(folder, name, draw.choice((3000, 5000, 8000))).rename(folder / f"{number}_{name}")
        elif kind == "empty":
            path.touch()
        elif kind == "text":
            path.write_text("no image")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "dangling":
            path.symlink_to(folder / "nowhere.png")
        elif kind == "folder":
            path.mkdir()
        elif kind == "escape":
            noise(folder / f"\x1b[2J\r{number}.png", number)
        elif kind == "bytes":
            noise(Path(os.fsdecode(os.fsencode(folder) + f"/{number}".encode() + b"\xff.png")), number)
        elif kind == "cut":
            path.write_bytes(good_files()[number % 8][:-20])
        else:
            noise(folder / f".hidden{number}.png", number)
    return 3


def run_special(folder: Path, options: argparse.Namespace, draw: random.Random) -> list[str]:
    """Captions of the folder by the bundled captioner on torch."""
    wanted = special_files(folder / "special", options.special, draw)
    out, log = folder / "captions.jsonl", folder / "special.log"
    status, peak = peak_mb([*CLI, "caption", str(folder / "special"), "--beams", "1", "--out", str(out)], log)
    text = log.read_text(encoding="utf-8", errors="replace")
    captions = len(out.read_text(encoding="utf-8").splitlines())
    faults = []
    if status not in (0, 1) or captions < wanted:
        faults.append(f"exit status {status}, {captions} captions")
    if "Traceback" in text or "\x1b" in text:
        faults.append("a traceback, or an escape sequence of a name, on stderr")
    if peak >= LIMIT_MB:
        faults.append(f"{peak} MB")
    print(
        f"| special files in a folder | {options.special} | {captions} captioned, peak {peak} MB | "
        f"{faults or 'none'} |"
    )
    return faults


def run_mutations(folder: Path, options: argparse.Namespace) -> list[str]:
    """Mutated files through the loader, in a process whose peak is measured."""
    code = (
        f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(Path(__file__).parent)!r}]\nfrom images import good_files, "
        "mutated_files\nfrom fusion_captioner.image_loading import load_image\nread = refused = 0\nfor content in "
        f"mutated_files(good_files(), {options.mutations}, {options.seed}):\n    try:\n        load_image(content, "
        "(224, 224)); read += 1\n    except (ValueError, OSError) as error:\n        assert '\\n' not in str(error); "
        f"refused += 1\nopen({str(folder / 'read.txt')!r}, 'w').write(f'{{read}} read, {{refused}} refused')\n"
    )
    status, peak = peak_mb([sys.executable, "-c", code], folder / "mutations.log")
    faults = [] if status == 0 else [f"exit status {status}: {(folder / 'mutations.log').read_text()[-200:]}"]
    said = (folder / "read.txt").read_text() if status == 0 else "-"
    print(f"| mutated images | {options.mutations} | {said}, peak {peak} MB | {faults or 'none'} |")
    return faults


def kill_and_finish(
    name: str,
    kills: int,
    folder: Path,
    draw: random.Random,
    command: Callable[[bool], list[str]],
    check: Callable[[], str | None],
) -> list[str]:
    """Kills the command at random moments of what it takes, each time continuing; then lets it end, and checks what
    it made."""
    log = folder / f"{name.replace(' ', '_')}.log"
    begin = time.monotonic()
    if (status := start(command(False), log).wait()) != 0:
        print(f"| {name} | 0 | the unbroken run ended with {status} | {log} |")
        return [name]
    took = time.monotonic() - begin
    if wrong := check():
        return [f"{name}, unbroken: {wrong}"]
    expected, faults = took, []
    for _ in range(kills):
        process = start(command(True), log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.2, 1.0) * expected)
        end(process)
    if (status := start(command(True), log).wait()) != 0:
        faults.append(f"{name}: exit status {status} after {kills} kills")
    if wrong := check():
        faults.append(f"{name}: {wrong}")
    if "Traceback" in (text := log.read_text(encoding="utf-8", errors="replace")) and "Signal" not in text:
        faults.append(f"{name}: a traceback in {log}")
    print(f"| kills while {name} | {kills} | an unbroken run takes {took:.0f} s | {faults or 'none'} |")
    return faults


def run_kills(folder: Path, options: argparse.Namespace, draw: random.Random) -> list[str]:
    """Kills of each kind of long job, with tiny models."""
    faults: list[str] = []
    each = max(options.kills // 6, 1)
    photos = folder / "photos"
    for number in range(60):
        noise(photos / f"{number}.png", number)
    model = folder / "model"
    tiny_model().save_pretrained(model)
    tiny_processor().save_pretrained(model)
    towers = folder / "towers"
    tiny_head(FusionCaptionerForImageTextRetrieval, contrastive_loss_weight=1.0).save_pretrained(towers)
    tiny_processor().save_pretrained(towers)

    for name, launcher in (("captioning", CLI), ("captioning in two processes", TWO)):
        out = folder / f"{len(launcher)}.jsonl"

        def caption(resume: bool, launcher: list[str] = launcher, out: Path = out) -> list[str]:
            tail = ["--model", str(model), "--beams", "1", "--batch-size", "2", "--out", str(out)]
            return [*launcher, "caption", str(photos), *tail, *(["--resume"] if resume else [])]

        def captioned_once(out: Path = out) -> str | None:
            if not out.is_file():
                return "no captions"
            names = [json.loads(line)["image"] for line in out.read_text(encoding="utf-8").splitlines()]
            return None if len(names) == len(set(names)) == 60 else f"{len(names)} lines of {len(set(names))} images"

        def caption_anew(resume: bool, caption: Callable = caption, out: Path = out) -> list[str]:
            if resume and draw.random() < 0.3:  # from the beginning, now and then
                out.unlink(missing_ok=True)
            return caption(resume)

        faults += kill_and_finish(name, each, folder, draw, caption_anew, captioned_once)

    def index(resume: bool) -> list[str]:
        return [
            *CLI,
            "index",
            str(photos),
            "--model",
            str(towers),
            "--out",
            str(folder / "index"),
            "--batch-size",
            "4",
        ]

    def found() -> str | None:
        command = [*CLI, "search", str(folder / "index"), "w3 w4", "--top", "60"]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        return None if len(lines) == 60 else f"search finds {len(lines)} of 60 photos"

    faults += kill_and_finish("indexing", each, folder, draw, index, found)

    export = [*CLI, "export", str(model), "--to", "onnx", "--out", str(folder / "export")]

    def exported() -> str | None:
        command = [*CLI, "caption", str(photos / "0.png"), "--model", str(folder / "export")]
        return None if subprocess.run(command, capture_output=True).returncode == 0 else "the export does not caption"

    def export_anew(resume: bool) -> list[str]:
        if resume and (folder / "export").exists():
            subprocess.run(["rm", "-r", str(folder / "export")], check=True)
        return export

    faults += kill_and_finish("exporting", each, folder, draw, export_anew, exported)

    data = write_data(folder / "data", train=24)
    saving = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 3}
    for name, fields in (
        ("training", {}),
        ("training from cached features", {"feature_cache": str(folder / "features")}),
    ):
        (folder / name).mkdir()
        recipe = write_recipe(folder / name / "recipe.yaml", data, training=saving, data=fields)
        output = folder / name / "out"
        first: dict[int, float] = {}

        def train(resume: bool, recipe: Path = recipe, output: Path = output) -> list[str]:
            begun = output.exists() and any(output.glob("checkpoint-*"))
            if resume and not begun and output.exists():
                subprocess.run(["rm", "-r", str(output)], check=True)
            return [*CLI, "train", str(recipe), *(["--resume"] if resume and begun else [])]

        def trained(output: Path = output, first: dict[int, float] = first) -> str | None:
            if not (output / "model.safetensors").is_file():
                return "no model was saved"
            if not first:
                first.update(losses(output))
                subprocess.run(["rm", "-r", str(output)], check=True)
                return None
            return None if losses(output) == first else "losses differ from those of the unbroken run"

        faults += kill_and_finish(name, each, folder, draw, train, trained)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--special", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    print("| attack | number | what happened | lost, duplicated, traceback |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        faults = run_mutations(folder, options) + run_special(folder, options, draw) + run_kills(folder, options, draw)
    print(f"\n{len(faults)} faults" + "".join(f"\n- {fault}" for fault in faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

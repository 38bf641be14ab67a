"""Two processes of one core each against one process of one core: captioning a folder, and training. Linux only.

    python benchmarks/two_processes.py [--captioner exported] [--json FILE]

Each process has a core of its own, and finds its share of the work as under `torchrun`, by the variables that it sets.

Captioning: the command `caption` on synthetic photos, from its start to the end of the last process, merged file
included.
Training: the trainer on random features of 49 x 1280 (hidden size 512, vocabulary 4,000, 13 tokens, a batch of 64 a
process, one caption an image); two processes average their gradients over gloo. Captions a second by the median of
steps.
Beside it two processes that train at the same time and share nothing: what the machine's second core is worth.
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

PROCESSES = (1, 2)


def run_processes(
    command: Sequence[str], processes: int, cores: Sequence[int], joined: bool = True
) -> tuple[float, list[str]]:
    """Seconds from the start of so many processes to the end of the last, and what each has printed; `joined`: they
    know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    running = []
    for rank in range(processes):
        variables = {"OMP_NUM_THREADS": "1"}
        if processes > 1 and joined:
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            variables |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        running.append(
            subprocess.Popen(
                ["taskset", "-c", str(cores[rank]), *command],
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate() for process in running]
    seconds = time.perf_counter() - start
    for process, (_, errors) in zip(running, outputs):
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors}")
    return seconds, [output for output, _ in outputs]


def caption_rates(captioner: str, photos: int, repeats: int, cores: Sequence[int]) -> dict[int, float]:
    """Photos a second by the number of processes."""
    from synthetic_photos import write_photos

    rates: dict[int, list[float]] = {processes: [] for processes in PROCESSES}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "photos").mkdir()
        write_photos(Path(folder) / "photos", photos, 640, 480)
        out = Path(folder) / "captions.jsonl"
        command = [sys.executable, "-m", "fusion_captioner.cli", "caption", f"{folder}/photos", "--model", captioner]
        for _ in range(repeats):
            for processes in PROCESSES:
                out.unlink(missing_ok=True)
                seconds, _ = run_processes([*command, "--out", str(out)], processes, cores)
                if len(out.read_text().splitlines()) != photos:
                    raise RuntimeError(f"{processes} processes wrote {len(out.read_text().splitlines())} captions.")
                rates[processes].append(photos / seconds)
    return {processes: statistics.median(each) for processes, each in rates.items()}


def training_rates(steps: int, repeats: int, cores: Sequence[int], joined: bool = True) -> dict[int, float]:
    """Captions a second by the number of processes."""
    rates: dict[int, list[float]] = {processes: [] for processes in PROCESSES}
    command = [sys.executable, __file__, "--train", str(steps)]
    for _ in range(repeats):
        for processes in PROCESSES:
            _, outputs = run_processes(command, processes, cores, joined)
            rates[processes].append(min(json.loads(output.splitlines()[-1]) for output in outputs) * processes)
    return {processes: statistics.median(each) for processes, each in rates.items()}


def train(steps: int) -> float:
    """One of the processes that train; its captions per second."""
    import torch
    from training_speed import BATCH, REGIONS, TOKENS, VOCABULARY, WIDTH, captioner
    from transformers import PrinterCallback, TrainerCallback, default_data_collator

    from fusion_captioner.process_setup import keep_freed_memory
    from fusion_captioner.training.trainer import FusionCaptionerTrainer
    from fusion_captioner.training.training_arguments import FusionCaptionerTrainingArguments

    torch.set_num_threads(1)
    keep_freed_memory()  # as the commands do
    torch.manual_seed(0)
    features = torch.randn(BATCH, REGIONS, WIDTH)
    ends: list[float] = []

    class Captions(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1000 * BATCH

        def __getitem__(self, index: int) -> dict[str, Any]:
            tokens = torch.randint(3, VOCABULARY, (TOKENS + 1,))
            return {"image_hidden_states": features[index % BATCH], "input_ids": tokens, "labels": tokens}

    class StepTimer(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = FusionCaptionerTrainer(
            model=captioner(),
            args=FusionCaptionerTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                max_steps=steps + 2,
                eval_strategy="no",
                save_strategy="no",
                logging_strategy="no",
                load_best_model_at_end=False,
                report_to="none",
                disable_tqdm=True,
            ),
            data_collator=default_data_collator,
            train_dataset=Captions(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(StepTimer())
        trainer.train()
    # the first steps are warm-up
    return BATCH / statistics.median(end - start for start, end in itertools.pairwise(ends[1:]))


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        print(json.dumps(train(int(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--captioner", metavar="FOLDER", help="checkpoint or export that captions (default: no captioning)"
    )
    parser.add_argument("--photos", type=int, default=1500, help="photos to caption (default: 1500)")
    parser.add_argument("--steps", type=int, default=10, help="steps to train, 0: none (default: 10)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each, in turn (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < max(PROCESSES):
        parser.error(f"{len(cores)} core; two are needed")
    rates = {}
    if options.captioner:
        rates["captioning"] = caption_rates(options.captioner, options.photos, options.repeats, cores)
    if options.steps:
        rates["training"] = training_rates(options.steps, options.repeats, cores)
        rates["training, sharing nothing"] = training_rates(options.steps, options.repeats, cores, joined=False)
    print(f"{date.today().isoformat()}, a core a process\n")
    print("| | one process | two | times faster |\n|---|---|---|---|")
    for work, each in rates.items():
        print(f"| {work}, captions/s | {each[1]:.1f} | {each[2]:.1f} | {each[2] / each[1]:.2f} |")
    if options.json:
        Path(options.json).write_text(json.dumps(rates, indent=2) + "\n")


if __name__ == "__main__":
    main()

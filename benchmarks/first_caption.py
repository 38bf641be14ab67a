"""The first caption of the bundled captioner from a cold start: seconds and peak memory. Linux only.

    python benchmarks/first_caption.py [PHOTO] [--runtimes onnx torch] [--starts 5] [--json FILE]

Each start is a process of its own, `fusion-captioner caption PHOTO` from start to end. Without a PHOTO a synthetic one
of 640x480 is captioned. Reported are the median and the range of the seconds on the clock, the seconds of processor
time, which other programs change less, and the most resident memory. The first start of each runtime does not count:
it reads the files from the disk, and the others find them in memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from synthetic_photos import write_photos

# What the console script runs, and then the most memory that it held, in KiB. (`ru_maxrss` holds that of this process,
# too.)
SCRIPT = """
import re, sys, time
from pathlib import Path
from fusion_captioner.cli import main
status = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(peak, time.process_time(), file=sys.stderr)
sys.exit(status)
"""


def start(photo: str, runtime: str) -> dict[str, float]:
    """Seconds on the clock and of processor time, and MB, of one process."""
    begin = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, "caption", photo, "--runtime", runtime], capture_output=True, text=True
    )
    seconds = time.perf_counter() - begin
    if finished.returncode:
        raise RuntimeError(f"the command failed: {finished.stderr}")
    peak, processor_seconds = finished.stderr.split()[-2:]
    return {"seconds": seconds, "processor_seconds": float(processor_seconds), "peak_mb": int(peak) * 1024 / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", metavar="PHOTO", help="default: a synthetic one")
    parser.add_argument("--runtimes", nargs="+", choices=["onnx", "torch"], default=["onnx", "torch"])
    parser.add_argument("--starts", type=int, default=5, help="cold starts of each runtime (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photo = options.photo or write_photos(Path(folder), 1, 640, 480)[0]
        runs = {
            runtime: [start(photo, runtime) for _ in range(options.starts + 1)][1:] for runtime in options.runtimes
        }
    print(f"{date.today().isoformat()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| runtime | s | range | processor s | peak MB |\n|---|---|---|---|---|")
    for runtime, starts in runs.items():
        package = "onnxruntime" if runtime == "onnx" else runtime
        seconds = [each["seconds"] for each in starts]
        print(
            f"| {package} {version(package)} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to "
            f"{max(seconds):.2f} | {statistics.median(each['processor_seconds'] for each in starts):.2f} | "
            f"{max(each['peak_mb'] for each in starts):.0f} |"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(runs, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Requests per second and latency of `fusion-captioner serve`, with batches and with one request at a time.

    python benchmarks/serving.py --photos FOLDER [--requests 300] [--memory-requests 2000] [--json FILE]

Each server is a process of its own; this one sends requests from `--concurrency` clients, each of which sends its next
request when the last is answered, as OpenAI's API takes them. The photos are sent in turn. The peer is the same server
with `--batch-size 1`, the same concurrency: a request at a time, without batching. The settings take turns, so that
other work on the machine hits both alike. At the end, the memory of the server with batches is read during
`--memory-requests` more requests.
"""

import argparse
import asyncio
import base64
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import psutil

from fusion_captioner.data.image_files import find_images

BATCHES, ALONE = "batches", "one at a time"
PHOTOS = 64


@contextmanager
def server(flags: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """The URL and the process of a server."""
    command = [sys.executable, "-m", "fusion_captioner.cli", "serve", "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"on (http://\S+)", line)
        if found is None:
            raise SystemExit(line.strip() or "the server did not start")
        yield found[1], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def drive(
    url: str, bodies: list[bytes], concurrency: int, process: psutil.Process | None = None
) -> dict[str, Any]:
    """Send all requests; returns seconds of each, of all, how many were lost, and memory after each tenth of them."""
    left = iter(bodies)
    seconds: list[float] = []
    lost = 0
    memory: list[float] = []

    async def send(client: httpx.AsyncClient) -> None:
        nonlocal lost
        for body in left:
            start = time.perf_counter()
            try:
                answer = await client.post("/v1/chat/completions", content=body)
                lost += answer.status_code != 200 or not answer.json()["choices"][0]["message"]["content"]
            except httpx.HTTPError:
                lost += 1
            seconds.append(time.perf_counter() - start)
            if process is not None and len(seconds) % (len(bodies) // 10) == 0:
                memory.append(process.memory_info().rss / 2**20)

    limits = httpx.Limits(max_connections=concurrency)
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, headers=headers) as client:
        start = time.perf_counter()
        await asyncio.gather(*(send(client) for _ in range(concurrency)))
        total = time.perf_counter() - start
    return {"seconds": seconds, "total": total, "lost": lost, "memory": memory}


def request_bodies(folder: str) -> list[bytes]:
    """A request for each of the first photos of a folder."""
    bodies = []
    for path in islice(find_images([folder]), PHOTOS):
        url = f"data:image/jpeg;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        bodies.append({"model": "captioner", "messages": [{"role": "user", "content": parts}]})
    return [json.dumps(body).encode() for body in bodies]


def figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = sorted(second for run in runs for second in run["seconds"])
    return {
        "requests": len(seconds),
        "per_second": len(seconds) / sum(run["total"] for run in runs),
        "p50": statistics.median(seconds),
        "p99": seconds[min(int(0.99 * len(seconds)), len(seconds) - 1)],
        "lost": sum(run["lost"] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, metavar="FOLDER", help="photos that are sent in turn")
    parser.add_argument("--requests", type=int, default=300, help="per setting (default: 300)")
    parser.add_argument("--rounds", type=int, default=3, help="parts that settings take turns in (default: 3)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--memory-requests", type=int, default=2000, help="0 leaves them out (default: 2000)")
    parser.add_argument(
        "--flags", nargs="*", default=[], help="more flags of `serve`, without their dashes: model=FOLDER"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    flags = ["--name", "captioner", "--batch-size", "8", *(f"--{flag}" for flag in options.flags)]
    photos = cycle(request_bodies(options.photos))
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    memory: dict[str, Any] = {}
    with server(flags) as (batches, process), server([*flags, "--batch-size", "1"]) as (alone, _):
        urls = {BATCHES: batches, ALONE: alone}
        for url in urls.values():
            asyncio.run(drive(url, list(islice(photos, 16)), 8))  # first calls are slower
        for _ in range(options.rounds):
            for concurrency in options.concurrency:
                for name, url in urls.items():
                    bodies = list(islice(photos, options.requests // options.rounds))
                    runs.setdefault((concurrency, name), []).append(asyncio.run(drive(url, bodies, concurrency)))
        if options.memory_requests:
            bodies = list(islice(photos, options.memory_requests))
            run = asyncio.run(drive(batches, bodies, 8, process))
            memory = {"requests": options.memory_requests, "lost": run["lost"], "mib": run["memory"]}
    rows = [{"concurrency": key[0], "server": key[1], **figures(found)} for key, found in runs.items()]
    print("| clients | server | requests per second | p50, ms | p99, ms | lost | p50 of one at a time / p50 |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        peer = next(each for each in rows if each["concurrency"] == row["concurrency"] and each["server"] == ALONE)
        print(
            f"| {row['concurrency']} | {row['server']} | {row['per_second']:.1f} | {row['p50'] * 1000:.0f} "
            f"| {row['p99'] * 1000:.0f} | {row['lost']} of {row['requests']} "
            f"| {peer['p50'] / row['p50']:.1f} |"
        )
    if memory:
        print(f"\nmemory over {memory['requests']} requests, {memory['lost']} lost, MiB after each tenth:")
        print(" ".join(f"{each:.0f}" for each in memory["mib"]))
    if options.json:
        Path(options.json).write_text(json.dumps({"rows": rows, "memory": memory}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Jobs share batches, wait no longer than they must, fail alone, and are bounded in number."""

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from fusion_captioner.serving.batching import Batcher, Job, QueueFullError

PICTURE = Image.new("RGB", (2, 2))


class Captioner:
    """Repeats prompts; those that say `bad` are at fault. Batches wait for `gate`."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.seeds: list[int | None] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(
        self, pictures: list[Image.Image], prompts: list[str], settings: Mapping[str, Any], seed: int | None
    ) -> list[list[str]]:
        self.batches.append(list(prompts))
        self.seeds.append(seed)
        assert self.gate.wait(10)
        if any("bad" in prompt for prompt in prompts):
            raise ValueError(f"one of {len(prompts)} is bad")
        return [[f"{prompt} {settings.get('beams', '')}".strip()] for prompt in prompts]


def job(prompt: str, seed: int | None = None, **settings: Any) -> Job:
    return Job(PICTURE, prompt, settings, seed)


def run(captioner: Captioner, use: Any, batch_size: int = 4, batch_wait: float = 0.05, queue_size: int = 8) -> Any:
    async def main() -> Any:
        async with Batcher(captioner, batch_size, batch_wait, queue_size) as batcher:
            return await use(batcher)

    return asyncio.run(asyncio.wait_for(main(), 20))


def test_a_full_batch_starts_at_once() -> None:
    async def use(batcher: Batcher) -> list[list[str]]:
        return await asyncio.gather(*batcher.submit([job(str(number)) for number in range(8)]))

    captioner = Captioner()
    start = time.monotonic()
    assert run(captioner, use, batch_wait=10) == [[str(number)] for number in range(8)]
    assert captioner.batches == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    assert time.monotonic() - start < 8


def test_a_job_waits_for_others_but_not_longer_than_it_may() -> None:
    async def use(batcher: Batcher) -> float:
        start = time.monotonic()
        first = batcher.submit([job("a")])
        await asyncio.sleep(0.05)
        await asyncio.gather(*first, *batcher.submit([job("b")]))
        return time.monotonic() - start

    captioner = Captioner()
    assert 0.3 <= run(captioner, use, batch_wait=0.3) < 5
    assert captioner.batches == [["a", "b"]]


def test_a_batch_has_one_kind_of_settings() -> None:
    async def use(batcher: Batcher) -> list[list[str]]:
        jobs = [job("a", beams=1), job("b", beams=3), job("c", beams=1), job("d", beams=3)]
        return await asyncio.gather(*batcher.submit(jobs))

    captioner = Captioner()
    assert run(captioner, use) == [["a 1"], ["b 3"], ["c 1"], ["d 3"]]
    assert captioner.batches == [["a", "c"], ["b", "d"]]


def test_jobs_with_a_seed_run_alone() -> None:
    async def use(batcher: Batcher) -> list[list[str]]:
        return await asyncio.gather(*batcher.submit([job("a", seed=1), job("b", seed=1), job("c"), job("d")]))

    captioner = Captioner()
    run(captioner, use)
    assert captioner.batches == [["a"], ["b"], ["c", "d"]]
    assert captioner.seeds == [1, 1, None]


def test_only_the_job_at_fault_fails() -> None:
    async def use(batcher: Batcher) -> list[Any]:
        texts = await asyncio.gather(*batcher.submit([job("a"), job("bad"), job("c")]), return_exceptions=True)
        return [*texts, *await asyncio.gather(*batcher.submit([job("after")]))]

    first, fault, third, after = run(Captioner(), use)
    assert (first, third, after) == (["a"], ["c"], ["after"])
    assert isinstance(fault, ValueError) and str(fault) == "one of 1 is bad"


def test_a_full_queue_takes_all_or_none() -> None:
    async def use(batcher: Batcher) -> list[Any]:
        captioner.gate.clear()
        running = batcher.submit([job(f"running {number}") for number in range(4)])
        while not captioner.batches:
            await asyncio.sleep(0.01)
        waiting = batcher.submit([job(str(number)) for number in range(6)])
        with pytest.raises(QueueFullError, match="6 images are waiting, and the queue holds 8"):
            batcher.submit([job("x"), job("y"), job("z")])
        assert batcher.waiting == 6
        waiting += batcher.submit([job("x"), job("y")])
        captioner.gate.set()
        return await asyncio.gather(*running, *waiting)

    captioner = Captioner()
    assert len(run(captioner, use)) == 12


def test_cancelled_jobs_make_room_and_are_not_run() -> None:
    async def use(batcher: Batcher) -> list[Any]:
        captioner.gate.clear()
        running = batcher.submit([job(f"running {number}") for number in range(4)])
        while not captioner.batches:
            await asyncio.sleep(0.01)
        waiting = batcher.submit([job(f"gone {number}") for number in range(8)])
        for future in (*waiting, running[0]):
            future.cancel()
        assert batcher.waiting == 0
        others = batcher.submit([job("stays")])
        captioner.gate.set()
        return await asyncio.gather(*running[1:], *others)

    captioner = Captioner()
    assert run(captioner, use) == [["running 1"], ["running 2"], ["running 3"], ["stays"]]
    assert captioner.batches[1:] == [["stays"]]


def test_leaving_runs_what_was_submitted() -> None:
    async def use(batcher: Batcher) -> list[Any]:
        return batcher.submit([job(str(number)) for number in range(6)])

    start = time.monotonic()
    futures = run(Captioner(), use, batch_wait=10)
    assert [future.result() for future in futures] == [[str(number)] for number in range(6)]
    assert time.monotonic() - start < 8  # nothing is waited for that cannot come

"""Concurrent requests in one batch: each waits a few milliseconds for others, in a queue of bounded length."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

# Pictures, their prompts, settings and seed → texts of each picture.
CaptionBatch = Callable[[list[Image.Image], list[str], Mapping[str, Any], int | None], list[list[str]]]


class QueueFullError(Exception):
    """There is no room for a request in the queue; it may be tried again."""


@dataclass(frozen=True)
class Job:
    """
    A picture to caption.

    Args:
        picture: in the size that the captioner takes.
        prompt: the words that its text continues.
        settings: of generation; only jobs with equal settings share a batch.
        seed: of random draws. A job with a seed runs alone: its draws would depend on the other rows of a batch.
    """

    picture: Image.Image
    prompt: str
    settings: Mapping[str, Any]
    seed: int | None = None


@dataclass(eq=False)
class _Waiting:
    job: Job
    since: float
    texts: "asyncio.Future[list[str]]"
    key: Hashable = field(init=False)

    def __post_init__(self) -> None:
        self.key = object() if self.job.seed is not None else frozenset(self.job.settings.items())


class Batcher:
    """
    Runs jobs in batches, one batch at a time, in a thread of its own.

    A batch starts when it is full, or when its first job has waited `batch_wait` seconds. If a batch fails, its jobs
    run one by one, so that only those fail that are at fault. Jobs whose future is cancelled are dropped.

    Args:
        caption: see [`CaptionBatch`].
        batch_size: jobs per batch, at most.
        batch_wait: seconds.
        queue_size: jobs that may wait, those that run not included.
        on_batch: is given the size of each batch that starts.

    Use it as `async with`: leaving waits for the jobs that were submitted.
    """

    def __init__(
        self,
        caption: CaptionBatch,
        batch_size: int,
        batch_wait: float,
        queue_size: int,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.caption = caption
        self.batch_size = batch_size
        self.batch_wait = batch_wait
        self.queue_size = queue_size
        self.on_batch = on_batch
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="captioner")

    async def __aenter__(self) -> "Batcher":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._closing = True
        self._changed.set()
        await self._task
        self._thread.shutdown()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return sum(not each.texts.done() for each in self._waiting)

    def submit(self, jobs: Sequence[Job]) -> "list[asyncio.Future[list[str]]]":
        """
        Put jobs in the queue, all or none.

        Returns:
            a future per job: its texts, or what captioning raised for it.

        Raises:
            QueueFullError: there is no room for them.
        """
        if self.waiting + len(jobs) > self.queue_size:
            raise QueueFullError(f"{self.waiting} images are waiting, and the queue holds {self.queue_size}")
        loop = asyncio.get_running_loop()
        news = [_Waiting(job, loop.time(), loop.create_future()) for job in jobs]
        self._waiting.extend(news)
        self._changed.set()
        return [each.texts for each in news]

    async def _run(self) -> None:
        while batch := await self._next_batch():
            await self._caption(batch)

    async def _next_batch(self) -> list[_Waiting]:
        """The next jobs; none when all is done and the batcher closes."""
        loop = asyncio.get_running_loop()
        while True:
            self._waiting = deque(each for each in self._waiting if not each.texts.done())
            left = None
            if self._waiting:
                first = self._waiting[0]
                batch = [each for each in self._waiting if each.key == first.key][: self.batch_size]
                left = first.since + self.batch_wait - loop.time()
                if len(batch) == self.batch_size or left <= 0 or self._closing or first.job.seed is not None:
                    self._waiting = deque(each for each in self._waiting if each not in batch)
                    return batch
            elif self._closing:
                return []
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    async def _caption(self, batch: list[_Waiting]) -> None:
        self.on_batch(len(batch))
        jobs = [each.job for each in batch]
        arguments = ([job.picture for job in jobs], [job.prompt for job in jobs], jobs[0].settings, jobs[0].seed)
        try:
            texts = await asyncio.get_running_loop().run_in_executor(self._thread, self.caption, *arguments)
        except Exception as error:
            if len(batch) > 1:
                for each in batch:
                    await self._caption([each])
            elif not batch[0].texts.done():
                batch[0].texts.set_exception(error)
            return
        for each, result in zip(batch, texts, strict=True):
            if not each.texts.done():
                each.texts.set_result(result)

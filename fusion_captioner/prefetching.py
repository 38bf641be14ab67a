"""Work ahead of its use, in threads. Neither torch nor NumPy is imported here."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    items: Iterable[Item], function: Callable[[Item], Result], ahead: int, workers: int
) -> Iterator[tuple[Item, Result]]:
    """
    Each item with what `function` makes of it, in order, while the caller works on those before.

    Threads, not processes: Pillow releases the GIL while it decodes and resizes, as the runtimes do while they
    compute, and threads need no second interpreter and no copies of pictures through pipes.

    Args:
        items: taken one by one, as there is room.
        function: called in threads; what it raises is raised here.
        ahead: results that may be waiting or in the making, apart from the one that is given out.
        workers: threads.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as threads:
        try:
            for item in items:
                waiting.append((item, threads.submit(function, item)))
                if len(waiting) > ahead:
                    item, result = waiting.popleft()
                    yield item, result.result()
            while waiting:
                item, result = waiting.popleft()
                yield item, result.result()
        finally:
            for _, result in waiting:
                result.cancel()

"""Reading images ahead of a captioner."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Name = TypeVar("Name")
Picture = TypeVar("Picture")


def read_ahead(
    names: Iterable[Name], read: Callable[[Name], Picture], ahead: int, readers: int
) -> Iterator[tuple[Name, Picture]]:
    """
    What `read` makes of each name, in the order of the names, while the caller works on what came before.

    Args:
        names: taken one by one, as there is room.
        read: called in threads; what it raises is raised here.
        ahead: results that may be under way or waiting, beside the one that is given out.
        readers: threads.
    """
    # Threads, not processes: Pillow lets go of the interpreter's lock while it decodes and resizes, as the runtimes do
    # while they compute, and threads cost neither a second interpreter's memory nor copies of pictures through pipes.
    waiting: deque[tuple[Name, Future[Picture]]] = deque()
    with ThreadPoolExecutor(readers, thread_name_prefix="reader") as threads:
        try:
            for name in names:
                waiting.append((name, threads.submit(read, name)))
                if len(waiting) > ahead:
                    name, picture = waiting.popleft()
                    yield name, picture.result()
            while waiting:
                name, picture = waiting.popleft()
                yield name, picture.result()
        finally:
            for _, picture in waiting:
                picture.cancel()

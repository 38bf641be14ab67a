"""The share of the work that this process has, by the environment that `accelerate launch` and `torchrun` set.

torch is not needed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchedProcess:
    """
    One of the processes that a launcher started, or the only one.

    Args:
        rank, processes: which of how many, on all machines.
        local_rank, local_processes: which of how many on this machine.
    """

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    local_processes: int = 1

    @property
    def threads(self) -> int | None:
        """Cores that are this process's own; None where they all are."""
        return None if self.local_processes == 1 else max(1, usable_cores() // self.local_processes)


def launched_process(environment: Mapping[str, str] = os.environ) -> LaunchedProcess:
    """
    The process that the variables `RANK`, `WORLD_SIZE`, `LOCAL_RANK` and `LOCAL_WORLD_SIZE` describe; without them,
    the only one.

    Raises:
        ValueError: they do not fit each other.
    """
    if "RANK" not in environment:  # some schedulers set WORLD_SIZE for everything that they run
        return LaunchedProcess()
    numbers = {}
    for name, default in {"RANK": None, "WORLD_SIZE": None, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        text = environment.get(name, default)
        if text is None or not text.isdecimal():
            raise ValueError(
                f"the environment variable {name} ({text!r}) must be a number, since RANK is set; start the command "
                f"with `accelerate launch` or `torchrun`, or unset RANK."
            )
        numbers[name] = int(text)
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if numbers[rank] >= numbers[size]:
            raise ValueError(
                f"the environment variable {rank} ({numbers[rank]}) must be below {size} ({numbers[size]}); start the "
                "command with `accelerate launch` or `torchrun`, or unset RANK."
            )
    return LaunchedProcess(*numbers.values())


def usable_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

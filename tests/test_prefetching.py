"""Work ahead: in order, bounded, and its errors are raised."""

import time
from threading import Semaphore

import pytest

from fusion_captioner.prefetching import prefetch


def test_results_come_in_order_however_long_each_takes() -> None:
    def read(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    assert list(prefetch(range(20), read, ahead=5, workers=4)) == [(number, number**2) for number in range(20)]
    assert list(prefetch([], read, ahead=5, workers=4)) == []


def test_what_is_prefetched_is_bounded_and_made_while_the_caller_works() -> None:
    begun = Semaphore(0)
    results = prefetch(iter(range(100)), lambda number: begun.release(), ahead=6, workers=2)
    next(results)
    for _ in range(7):  # the first and six ahead
        assert begun.acquire(timeout=5)
    assert not begun.acquire(timeout=0.05)
    next(results)
    assert begun.acquire(timeout=5)
    assert not begun.acquire(timeout=0.05)
    results.close()
    assert not begun.acquire(timeout=0.05)


def test_what_reading_raises_is_raised() -> None:
    def read(number: int) -> int:
        return 1 // (3 - number)

    results = prefetch(range(10), read, ahead=2, workers=2)
    assert [next(results)[1] for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)

"""Reading ahead: in order, bounded, and over when the caller has had enough; and the bar that shows how far it is."""

import io
import sys
import time
from threading import Semaphore

import pytest

from fusion_captioner.inference.progress import Progress
from fusion_captioner.inference.reading_ahead import read_ahead


def test_results_come_in_order_however_long_each_takes() -> None:
    def read(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    assert list(read_ahead(range(20), read, ahead=5, readers=4)) == [(number, number**2) for number in range(20)]
    assert list(read_ahead([], read, ahead=5, readers=4)) == []


def test_what_is_read_ahead_is_bounded_and_read_while_the_caller_works() -> None:
    begun = Semaphore(0)
    results = read_ahead(iter(range(100)), lambda number: begun.release(), ahead=6, readers=2)
    next(results)
    for _ in range(7):  # the first and six ahead
        assert begun.acquire(timeout=60)
    assert not begun.acquire(timeout=0.05)
    next(results)
    assert begun.acquire(timeout=60)
    assert not begun.acquire(timeout=0.05)
    results.close()
    assert not begun.acquire(timeout=0.05)


def test_what_reading_raises_is_raised() -> None:
    def read(number: int) -> int:
        return 1 // (3 - number)

    results = read_ahead(range(10), read, ahead=2, readers=2)
    assert [next(results)[1] for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_with_images_a_second_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=10, done=4) as progress:
        progress.print("a line", sys.stdout)
        progress.advance(6)
    assert "4/10" in terminal.getvalue() and "10/10" in terminal.getvalue() and " images/s" in terminal.getvalue()
    assert capsys.readouterr().out == "a line\n"

    for stream, show in ((Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress(total=10, show=show) as progress:
            progress.advance(10)
        assert stream.getvalue() == ""

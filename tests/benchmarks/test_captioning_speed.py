"""Systems of `captioning_speed.py` are compared within turns; one that fails says why."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)  # it imports the benchmarks next to it
    return importlib.import_module("captioning_speed")


def test_ratios_are_those_within_turns(speed: ModuleType) -> None:
    """The machine is four times as slow in the second turn, and a repeat of the captioner was disturbed."""

    def system(kind: str, *turns: list[float]) -> dict:
        taken = [{"stages": [[0.0, 0.0, seconds] for seconds in turn], "peak_bytes": 1} for turn in turns]
        return {"name": kind, "kind": kind, "flop": {"1": 6}, "settings": [speed.figures_of(1, 2, taken)]}

    own = system("checkpoint", [1.0, 9.0, 1.0], [4.0, 4.0, 4.0], [1.0, 1.0, 1.0])
    peer = system("peer", [8.0, 8.0, 8.0], [32.0, 32.0, 32.0], [8.0, 8.0, 8.0])
    speed.ratios([own, peer])
    assert own["settings"][0]["speed_ratio"] == 8
    assert own["settings"][0]["images_per_second"] == 2
    assert own["settings"][0]["seconds_of_turns"] == [0.5, 2, 0.5]
    assert peer["settings"][0]["speed_ratio"] == 1


@pytest.mark.slow
def test_a_system_that_fails_says_why(speed: ModuleType, tmp_path: Path) -> None:
    task = {"name": "missing", "kind": "export", "path": str(tmp_path / "none"), "threads": 1, "photos": []}
    with pytest.raises(RuntimeError, match=r"(?s)missing failed:.*none"):
        speed.LiveSystem(task, tmp_path)

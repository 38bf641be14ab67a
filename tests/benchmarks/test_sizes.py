"""`benchmarks/sizes.py`: every size is timed, and the table and the plot say which are worth their time."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from tiny_exports import Export

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SETTINGS = {"steps": 938, "flags": [], "source": "flickr8k", "vision_model": "lite2"}


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)  # it imports the benchmarks next to it
    yield importlib.import_module("sizes")


def test_the_table_and_the_plot_show_the_front(sizes: ModuleType) -> None:
    scores = {"hidden_256": [0.45, 0.47], "attention": [0.50, 0.52], "two_layers": [0.49]}
    rows = {
        row: {seed: {"CIDEr": cider, "parameters": 8_200_000} for seed, cider in enumerate(ciders)}
        for row, ciders in scores.items()
    }
    names = [*sizes.SEARCHES.values(), "generation"]
    times = {"hidden_256": [9, 5, 1], "attention": [8, 7, 3], "two_layers": [8.5, 6.5, 4]}
    times = {row: dict(zip(names, values, strict=True)) for row, values in times.items()}
    page = sizes.table(rows, times, SETTINGS, rounds=5)
    cells = {row[0]: row[1:] for row in (line.strip("|").split("|") for line in page.splitlines() if line[:1] == "|")}
    cells = {label.strip(): [cell.strip() for cell in row] for label, row in cells.items()}
    small, recipe, deep = (cells[sizes.LABELS[row]] for row in rows)
    # slower and worse when greedy, faster and worse with beams
    assert small == ["0.4600 (0.4500 to 0.4700)", "2", "8.20", "9.00", "5.00", "1.00", "beam 3, batch 8"]
    assert recipe[0] == "0.5100 (0.5000 to 0.5200)" and recipe[-1] == "both"
    assert deep[0] == "0.4900" and deep[-1] == "beam 3, batch 8"
    assert "--steps 938 --rows hidden_256 attention two_layers --seeds 0 1" in page

    root = ElementTree.fromstring(sizes.plot(rows, times))
    circles = [node.attrib for node in root.iter() if node.tag.endswith("circle")]
    rings = {circle["cx"]: float(circle["cy"]) for circle in circles if circle["fill"] == "none"}
    assert len(circles) == 5 + 3 and len(rings) == 3
    ordered = [rings[place] for place in sorted(rings, key=float)]  # the fastest first
    assert ordered[0] > ordered[1] > ordered[2]  # and the best is highest


@pytest.mark.slow
def test_each_search_of_an_export_is_timed(sizes: ModuleType, export: Export) -> None:
    times = sizes.time_exports({"attention": export("onnx")}, rounds=1, repeats=1)
    assert set(times["attention"]) == {*sizes.SEARCHES.values(), "generation"}
    assert 0 < times["attention"]["generation"] < times["attention"][sizes.SEARCHES[3, 8]]


def test_what_is_missing_is_named_in_one_line(
    sizes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sizes.main(["--out", str(tmp_path), "--calibration", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("sizes.py: `--out`")

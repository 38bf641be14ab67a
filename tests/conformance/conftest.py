"""`make conformance` runs this folder; every other run of the tests leaves it out, since it fetches transformers'
sources."""

import os
import re
from collections import Counter

import pytest
from not_applicable import reason

collect_ignore_glob = [] if os.environ.get("FUSION_CAPTIONER_CONFORMANCE") else ["test_*.py"]
# what pytest reports, the worst first
OUTCOMES = {
    "error": "failed",
    "failed": "failed",
    "xfailed": "not applicable",
    "skipped": "skipped",
    "passed": "passed",
}
COLUMNS = ("passed", "failed", "not applicable", "skipped")
HEADS = "Model|ConditionalGeneration|ImageTextRetrieval|MultipleChoice|SequenceClassification"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of the list must fail: one that passes has no place in it."""
    for item in items:
        why = reason(item.cls.__name__ if item.cls else "", item.originalname)
        if why is not None:
            item.add_marker(pytest.mark.xfail(reason=why, strict=True))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of `docs/conformance.md`. A test counts once, by the worst that its subtests report."""
    found: dict[str, str] = {}
    for outcome, column in OUTCOMES.items():
        for report in terminalreporter.stats.get(outcome, []):
            found.setdefault(report.nodeid, column)
    counts = Counter((row(name), column) for name, column in found.items())
    terminalreporter.section("conformance")
    terminalreporter.line(f"| tests | {' | '.join(COLUMNS)} |")
    terminalreporter.line("| --- |" + " ---: |" * len(COLUMNS))
    for name in sorted({name for name, _ in counts}):
        terminalreporter.line(f"| {name} | {' | '.join(str(counts[name, column]) for column in COLUMNS)} |")


def row(nodeid: str) -> str:
    """The variant of a test of a model, the class of another unit test, or the file of a plain one."""
    file, *names = nodeid.split("::")
    if len(names) > 1:
        return re.sub(rf"({HEADS})?Test$", "", names[0])
    return file.rpartition("/")[2].removeprefix("test_").removesuffix(".py")

"""The pages lead somewhere, and the messages that they explain exist."""

import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Names of the headings of a page, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_navigation() -> None:
    found = re.findall(r"[\w/]+\.md", yaml.dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(found) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    sources = [*(ROOT / "fusion_captioner").rglob("*.py"), ROOT / "Makefile"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)  # strings that Python joins
    rows = re.findall(r"^\| `([^`]+)`", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    of_transformers = {"Transformers does not recognize this architecture"}
    assert len(rows) > 40 and of_transformers <= set(rows)
    pieces = [piece.strip() for row in rows if row not in of_transformers for piece in row.split("...")]
    assert [piece for piece in pieces if piece not in code] == []


def test_tests_that_pages_name_exist() -> None:
    named = {
        name for page in PAGES for name in re.findall(r"`(tests/[\w/.]+\.py(?:::\w+)?)`", page.read_text("utf-8"))
    }
    assert len(named) > 40
    for name in named:
        file, _, test = name.partition("::")
        assert (ROOT / file).is_file(), name
        assert not test or f"\ndef {test}(" in (ROOT / file).read_text("utf-8"), name


def test_every_fault_that_was_found_has_its_test() -> None:
    _, _, table = (DOCS / "security.md").read_text("utf-8").partition("## Faults that were found")
    rows = re.findall(r"^\| (\d*) ?\| [^|]+ \| [^|]+ \| ([^|]+) \|$", table, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows if number] == list(range(1, 11))
    assert all("::test_" in tests for _, tests in rows[1:])  # behind the heading


def test_names_in_brackets_of_docstrings_are_links() -> None:
    on_page_content = runpy.run_path(str(DOCS / "hooks.py"))["on_page_content"]
    place = '<h3 id="fusion_captioner.inference.captioner.load_on_runtime">'
    linked = '<a href="#fusion_captioner.inference.captioner.load_on_runtime"><code>load_on_runtime</code></a>'
    assert on_page_content(f"{place} see [<code>load_on_runtime</code>]") == f"{place} see {linked}"
    assert on_page_content("see [<code>elsewhere</code>]") == "see <code>elsewhere</code>"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed; `make docs` installs it")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "migration.html").is_file() and "explain_captions" in (tmp_path / "api.html").read_text()

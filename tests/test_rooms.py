"""The floors of the package: a room imports only rooms that stand before it in `ROOMS`."""

import ast
from pathlib import Path

import pytest

import fusion_captioner

PACKAGE = Path(fusion_captioner.__file__).parent
# In the order of the design; the flat files that ship with a checkpoint, and `files.py`, stand before them all.
ROOMS = [
    "metrics",
    "checkpoints",
    "data",
    "evaluation",
    "training",
    "inference",
    "export",
    "search",
    "demo",
    "commands",
]


def _imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("fusion_captioner"):
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("fusion_captioner.")}
    return found


def test_every_folder_is_a_known_room():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_rooms_before_them(room: str):
    allowed = ROOMS[: ROOMS.index(room) + 1]
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for module in _imported(path)
        if (part := module.split(".")[1]) == "cli" or (part in ROOMS and part not in allowed)
    ]
    assert not wrong


def test_flat_files_import_no_room():
    for path in PACKAGE.glob("*.py"):
        if path.name != "cli.py":
            assert not {module for module in _imported(path) if module.split(".")[1] in ROOMS}, path.name

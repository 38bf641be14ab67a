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
    "serving",
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


# The circle that the Hub's scanner forces: the base model's file names the files of all model classes, so that they
# are saved with every checkpoint, and these import the base model.
FORCED = {
    f"fusion_captioner.{name}"
    for name in (
        "modeling_fusion_captioner",
        "image_text_retrieval",
        "multiple_choice",
        "optional_modalities",
        "sequence_classification",
    )
}


def _import_graph(package: Path) -> dict[str, set[str]]:
    """Module → the modules of the package that it imports, anywhere in its file and under `TYPE_CHECKING` too."""
    paths = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        parts = module.split(".")
        folder = parts if path.name == "__init__.py" else parts[:-1]
        named = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                start = folder[: len(folder) - node.level + 1] if node.level else []
                source = ".".join([*start, *([node.module] if node.module else [])])
                # a name is a module, or what a module defines
                named |= {full if (full := f"{source}.{name.name}") in paths else source for name in node.names}
        graph[module] = named & paths.keys()
    return graph


def _circles(graph: dict[str, set[str]]) -> set[str]:
    """The modules that import each other: what is left when modules that import nothing, and modules that nothing
    imports, are removed until none is."""
    left = {module: set(imported) for module, imported in graph.items()}
    while True:
        imported = set().union(*left.values()) if left else set()
        ends = {module for module, names in left.items() if not names or module not in imported}
        if not ends:
            return set(left)
        left = {module: names - ends for module, names in left.items() if module not in ends}


def test_no_modules_import_each_other_but_the_models():
    assert _circles(_import_graph(PACKAGE)) == FORCED


def test_a_circle_is_found_in_any_form(tmp_path: Path):
    package = tmp_path / "package"
    files = {
        "__init__.py": "",
        "first.py": "from package.room import second",
        "room/__init__.py": "",
        "room/second.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .third import name",
        "room/third.py": "def late():\n    import package.first",
        "above.py": "from package.first import name",
        "below.py": "import ast",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert _circles(_import_graph(package)) == {"package.first", "package.room.second", "package.room.third"}

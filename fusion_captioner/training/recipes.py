"""The recipes that come with the package, `recipes/NAME.yaml`: found by name, listed with what they need and score.

The comment at the head of a recipe is its description: what it trains; the lines `needs:`, `takes:` and `scores:`;
after an empty comment line, its commands. Neither torch nor transformers is imported here.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import fusion_captioner
from fusion_captioner.files import expanded

FOLDER = Path(fusion_captioner.__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """
    Args:
        name: what `fusion-captioner train` takes.
        text: the YAML.
    """

    name: str
    text: str

    @property
    def description(self) -> dict[str, str]:
        """`trains`, `needs`, `takes` and `scores`, each in one line."""
        head = re.match(r"(?:# .*\n)+", self.text)
        words = " ".join(head[0].replace("\n# ", " ").removeprefix("# ").split()) if head else ""
        parts = re.split(r"(?:^| )(needs|takes|scores): ", words)
        return {"trains": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


def recipe_names() -> list[str]:
    """Names of all recipes, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_recipe(name: str) -> Recipe:
    """
    Raises:
        ValueError: there is no recipe of this name; the message names those there are.
    """
    if name not in recipe_names():
        raise ValueError(f"{name}: is no recipe; {_known(name)}.")
    return Recipe(name, _path(name).read_text(encoding="utf-8"))


def find_recipe(name: str | Path) -> Path:
    """
    The YAML file of a recipe: a file of one's own, or the name of one that comes with the package.

    Raises:
        FileNotFoundError: it is neither; the message names the recipes there are.
    """
    file = expanded(name)
    if file.is_file():
        return file
    if str(name) in recipe_names():
        return _path(str(name))
    raise FileNotFoundError(f"{name}: no such file, and no recipe; {_known(str(name))}.")


def _path(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def _known(name: str) -> str:
    near = get_close_matches(Path(name).stem, recipe_names(), 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}recipes are {', '.join(recipe_names())}"

"""The commands of the guides exist, with the flags that they are shown with."""

import re
import shlex
from pathlib import Path

import pytest

from fusion_captioner.cli import build_parser
from fusion_captioner.commands.download import _plan
from fusion_captioner.data.published import DATASETS
from fusion_captioner.training.recipes import recipe_names

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(guide: Path) -> list[str]:
    """The commands in the blocks of a guide, a line each, without what stands in front of `&&` or a pipe."""
    found, is_block = [], False
    for line in guide.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.strip().startswith("```"):
            is_block = not is_block
        elif is_block:
            parts = (part.strip() for part in re.split(r"&&|\||>", line))
            found += [part for part in parts if part.startswith("fusion-captioner ")]
    return found


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_commands_have_the_flags_that_are_shown(guide: Path) -> None:
    for command in commands(guide):
        words = shlex.split(command, comments=True)[1:]
        if words[-1] == "...":
            continue
        options, unknown = build_parser(words[0]).parse_known_args(words)
        if options.command == "train":
            assert options.config in (*recipe_names(), "mine.yaml"), command
            unknown = [
                word for word in unknown[::2] if not re.fullmatch(r"--(model|data|tokenizer|training)\.[\w.]+", word)
            ]
        assert unknown == [], command


def test_the_guides_to_folders_and_coco_have_commands() -> None:
    assert [len(commands(ROOT / "docs" / name)) >= 6 for name in ("captioning.md", "coco.md")] == [True, True]


def test_the_plan_that_is_shown_is_that_of_the_command() -> None:
    coco = DATASETS["coco"]
    assert _plan(coco, coco.parts, coco.parts, Path("coco")) in (ROOT / "docs" / "coco.md").read_text(encoding="utf-8")

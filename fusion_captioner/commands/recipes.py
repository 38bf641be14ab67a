"""`fusion-captioner recipes`: the recipes that come with the package, and what each needs, takes and scores."""

import argparse
import shutil
import sys
import textwrap
from functools import partial

from fusion_captioner.printing import print_line

HELP = "list the recipes of `train`, or print one"
EPILOG = """\
  fusion-captioner recipes                          every recipe: what it trains, needs, takes and scores
  fusion-captioner recipes show coco > mine.yaml    a copy to change
  fusion-captioner train mine.yaml                  or by name: fusion-captioner train coco --data.source FOLDER"""
MAX_WIDTH = 119


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "List the recipes that come with the package, or print one of them."
    parser.epilog = EPILOG
    subparsers = parser.add_subparsers(dest="action", metavar="show")
    show = subparsers.add_parser("show", help="print a recipe as YAML", description="Print a recipe as YAML.")
    show.add_argument("name", metavar="NAME", help="name of the recipe")


def run(options: argparse.Namespace) -> int:
    from fusion_captioner.training.recipes import read_recipe, recipe_names

    if options.action == "show":
        print_line(read_recipe(options.name).text.removesuffix("\n"), sys.stdout)
        return 0
    width = min(shutil.get_terminal_size((MAX_WIDTH, 0)).columns, MAX_WIDTH)
    fill = partial(textwrap.fill, width=width, break_on_hyphens=False, break_long_words=False)
    for name in recipe_names():
        description = read_recipe(name).description
        trains = description.pop("trains")
        lines = [name, fill(trains, initial_indent="  ", subsequent_indent="  ")]
        for key, words in description.items():
            lines.append(fill(words, initial_indent=f"    {key:<7} ", subsequent_indent=" " * 12))
        print_line("\n".join([*lines, ""]), sys.stdout)
    return 0

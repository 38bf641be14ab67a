"""
The command `fusion-captioner`: dispatches to one file per command in `commands/`. Nothing heavy is imported before a
command runs, so that `--help` answers at once.

Exit status: 0 when all went well, 1 when single images of many could not be read, 2 for wrong input.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from fusion_captioner import __version__
from fusion_captioner.commands import (
    answer,
    average,
    caption,
    classify,
    convert,
    demo,
    demo_page,
    download,
    evaluate,
    export,
    index,
    mcp,
    recipes,
    search,
    serve,
    shrink,
    train,
)
from fusion_captioner.printing import error_text, print_log, print_note
from fusion_captioner.process_setup import keep_freed_memory, open_closed_streams

COMMANDS = {
    command.__name__.rpartition(".")[2].replace("_", "-"): command
    for command in (
        *(caption, classify, answer, train, recipes, evaluate, export, shrink, average),
        *(index, search, serve, mcp, convert, download, demo, demo_page),
    )
}

# What torch says where Python raises MemoryError.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")

EPILOG = """\
examples:
  fusion-captioner caption photo.jpg holiday/
  fusion-captioner download coco
  fusion-captioner convert --out lite2                       ImageNet weights of a small backbone
  fusion-captioner recipes                                   what there is to train
  fusion-captioner train flickr8k_cpu --data.source flickr8k --model.vision_model lite2
  fusion-captioner evaluate runs/captioner --source flickr8k --split val --beams 1 3
  fusion-captioner classify photo.jpg --text "what a day" --model runs/tweet_sentiment
  fusion-captioner answer photo.jpg --question "what is it?" --model runs/assistant
  fusion-captioner export runs/captioner --to openvino --out runs/captioner-openvino
  fusion-captioner index holiday/ --model runs/retrieval --out holiday.index
  fusion-captioner search holiday.index "a dog in the snow"
  fusion-captioner serve --port 8000                         OpenAI's API for the captioner
  fusion-captioner mcp --root holiday/                       a tool for assistants
  fusion-captioner demo-page holiday/                        a page in the browser

`fusion-captioner COMMAND --help` explains a command."""


def build_parser(chosen: str) -> argparse.ArgumentParser:
    """The parser, with the flags of the command `chosen` alone."""
    parser = argparse.ArgumentParser(
        prog="fusion-captioner",
        description="Train, score and run image captioners made by cross-modal fusion.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=command.HELP, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:
            command.add_arguments(subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(next(iter(arguments), ""))
    options, fields = parser.parse_known_args(arguments)
    if fields and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(fields)}")
    options.fields = fields
    open_closed_streams()
    try:
        print_log()
        keep_freed_memory()
        return COMMANDS[options.command].run(options)
    except KeyboardInterrupt:
        print_note("interrupted")
        return 130
    except BrokenPipeError:
        # the reader of stdout, such as `head`, has gone; Python must not complain when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
        if isinstance(error, RuntimeError) and not out_of_memory:
            raise  # a fault of this package
        if os.environ.get("FUSION_CAPTIONER_TRACEBACK"):
            raise
        text = error_text(error)
        if out_of_memory:
            text = f"not enough memory ({text}); give smaller images or a smaller model, or lower --batch-size."
        print_note(text)
        return 2


if __name__ == "__main__":
    sys.exit(main())

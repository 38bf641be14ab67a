"""`fusion-captioner demo`: captions photographs, and trains a small captioner end to end."""

import argparse

HELP = "caption photographs, and train a small captioner end to end"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Caption photographs with the captioner in the package; then render pictures, train a small captioner\n"
        "on them, score it, save it and load it back."
    )
    parser.add_argument("--data", metavar="FOLDER", help="train on a folder in COCO's or Karpathy's layout instead")
    parser.add_argument("--out", default=".demo", metavar="FOLDER", help="folder to write (default: .demo)")


def run(options: argparse.Namespace) -> int:
    from fusion_captioner.demo.demonstration import run_demo
    from fusion_captioner.file_locks import lock_output_folder
    from fusion_captioner.process_setup import keep_stderr_quiet

    keep_stderr_quiet(reads_data=True)
    with lock_output_folder(options.out, "--out"):
        return run_demo(options.out, options.data)

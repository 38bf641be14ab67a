"""`fusion-captioner shrink`: a checkpoint in half the bytes, to share or to ship."""

import argparse
import sys

from fusion_captioner.checkpoints.bundled import checkpoint_name
from fusion_captioner.commands.shared_flags import add_hub_flags
from fusion_captioner.printing import print_line

HELP = "write a captioner in half the bytes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a captioner with its weights rounded to float16, to share it; it is loaded as float32."
    parser.add_argument(
        "model",
        metavar="CHECKPOINT",
        type=checkpoint_name,
        help="folder or Hub name of the captioner; bundled: the one in the package",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--without-code", action="store_true", help="omit the code, for machines where the package is installed"
    )
    add_hub_flags(parser)


def run(options: argparse.Namespace) -> int:
    from fusion_captioner.checkpoints.shrinking import shrink
    from fusion_captioner.file_locks import lock_output_folder
    from fusion_captioner.process_setup import keep_stderr_quiet

    keep_stderr_quiet(reads_data=False)
    with lock_output_folder(options.out, "--out", [options.model]):
        folder = shrink(
            options.model,
            options.revision,
            options.out,
            with_code=not options.without_code,
            trust_remote_code=options.trust_remote_code,
        )
        print_line(str(folder), sys.stdout)
    return 0

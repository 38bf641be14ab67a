"""`fusion-captioner average`: one captioner from several that were trained on from the same one."""

import argparse
import sys

from fusion_captioner.checkpoints.bundled import checkpoint_name
from fusion_captioner.commands.shared_flags import add_trust_flag
from fusion_captioner.printing import print_line

HELP = "write the mean of several captioners (model soup)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write the mean of the weights of captioners that were trained on from the same one."
    parser.add_argument(
        "models", metavar="CHECKPOINT", nargs="+", type=checkpoint_name, help="folder or Hub name; two or more"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    add_trust_flag(parser)


def run(options: argparse.Namespace) -> int:
    from fusion_captioner.checkpoints.averaging import average_captioners
    from fusion_captioner.file_locks import lock_output_folder
    from fusion_captioner.process_setup import keep_stderr_quiet

    keep_stderr_quiet(reads_data=False)
    with lock_output_folder(options.out, "--out", options.models):
        print_line(str(average_captioners(options.models, options.out, options.trust_remote_code)), sys.stdout)
    return 0

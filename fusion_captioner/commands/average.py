"""`fusion-captioner average`: one captioner from several that were trained on from the same one."""

import argparse

from fusion_captioner.commands.shared_flags import add_trust_flag

HELP = "write the mean of several captioners (model soup)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write the mean of the weights of captioners that were trained on from the same one."
    parser.add_argument("models", metavar="CHECKPOINT", nargs="+", help="folder or Hub name; two or more")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    add_trust_flag(parser)


def run(options: argparse.Namespace) -> int:
    from fusion_captioner.checkpoints.averaging import average_captioners
    from fusion_captioner.file_locks import lock_output_folder
    from fusion_captioner.process_setup import keep_stderr_quiet

    keep_stderr_quiet(reads_data=False)
    with lock_output_folder(options.out, "--out"):
        print(average_captioners(options.models, options.out, options.trust_remote_code))
    return 0

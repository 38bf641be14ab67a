"""`fusion-captioner average`: one captioner from several that were trained on from the same one."""

import argparse

HELP = "write the mean of several captioners (model soup)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write the mean of the weights of captioners that were trained on from the same one."
    parser.add_argument("models", metavar="CHECKPOINT", nargs="+", help="folder or Hub name; two or more")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")


def run(options: argparse.Namespace) -> int:
    from fusion_captioner.checkpoints.averaging import average_captioners
    from fusion_captioner.files import check_output_folder, lock_output
    from fusion_captioner.process_setup import keep_stderr_quiet

    keep_stderr_quiet(reads_data=False)
    check_output_folder(options.out, "--out")
    with lock_output(options.out, "--out"):
        print(average_captioners(options.models, options.out))
    return 0

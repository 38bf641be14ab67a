"""`fusion-captioner export`: a captioner as files that run without torch."""

import argparse
import sys

from fusion_captioner.checkpoints.bundled import checkpoint_name
from fusion_captioner.commands.shared_flags import RUNTIMES, add_hub_flags
from fusion_captioner.files import expanded
from fusion_captioner.printing import print_line

HELP = "write a captioner that runs without torch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a captioner as a folder that `caption --model FOLDER` runs without torch."
    parser.epilog = (
        "ONNX Runtime comes with this package; OpenVINO is installed by pip install 'fusion-captioner[openvino]'.\n"
        "openvino+onnx runs the image encoder on the one and the decoder on the other.\n"
        "--to onnx and openvino+onnx, and --int8 for all, need pip install 'fusion-captioner[onnx]'."
    )
    parser.add_argument(
        "model",
        metavar="CHECKPOINT",
        type=checkpoint_name,
        help="folder or Hub name of the captioner; bundled: the one in the package",
    )
    parser.add_argument("--to", required=True, choices=RUNTIMES[1:], help="runtime to export for")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--int8", action="store_true", help="write int8, a quarter of the bytes; needs --calibration")
    parser.add_argument(
        "--calibration", metavar="FOLDER", help="some hundreds of images like those to caption, for --int8"
    )
    parser.add_argument(
        "--captions",
        nargs="+",
        metavar="[LANGUAGE=]SOURCE",
        help="captions whose words are all that the export needs to say, which makes it faster: the split train of "
        "data as for training; several add up (default: it can say every word)",
    )
    add_hub_flags(parser)


def run(options: argparse.Namespace) -> int:
    import logging

    from fusion_captioner.checkpoints.loading import load_captioner
    from fusion_captioner.export.captioner import export_captioner
    from fusion_captioner.file_locks import lock_output_folder
    from fusion_captioner.process_setup import keep_stderr_quiet

    keep_stderr_quiet(reads_data=True)
    # the exporter names every operator of packages that are not installed
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    images = _calibration_images(options)
    with lock_output_folder(options.out, "--out", [options.model]):
        model, processor = load_captioner(options.model, options.revision, trust_remote_code=options.trust_remote_code)
        captions = None if options.captions is None else _captions(options.captions, processor.languages)
        print_line(str(export_captioner(model, processor, options.to, options.out, images, captions)), sys.stdout)
    return 0


def _captions(sources: list[str], languages: list[str]) -> dict[str, list[str]]:
    """The training captions of each language, of sources with a language and `=` before them; `""` without any."""
    from fusion_captioner.data.caption_datasets import load_caption_dataset
    from fusion_captioner.data.caption_source import CaptionSource

    texts: dict[str, list[str]] = {language: [] for language in languages or [""]}
    for given in sources:
        language, _, source = given.partition("=") if languages else ("", "", given)
        if language not in texts or not source:
            raise ValueError(f"--captions ({given}) must be LANGUAGE=SOURCE, with a language of {', '.join(texts)}.")
        splits = load_caption_dataset(CaptionSource(source))
        if "train" not in splits:
            names = ", ".join(splits)
            raise ValueError(f"--captions ({given}): has no split train, but {names}; name another source.")
        texts[language] += [text for captions in splits["train"]["captions"] for text in captions]
    if lacking := [language for language, found in texts.items() if not found]:
        missing = " and ".join(f"{language}=SOURCE" for language in lacking)
        raise ValueError(f"--captions ({' '.join(sources)}) has no text for {missing}; add it.")
    return texts


def _calibration_images(options: argparse.Namespace) -> list[str] | None:
    from fusion_captioner.data.image_files import find_images
    from fusion_captioner.export.int8 import MAX_CALIBRATION_IMAGES

    if not options.int8:
        if options.calibration is not None:
            raise ValueError(f"--calibration ({options.calibration}) goes with --int8; add it, or leave both out.")
        return None
    if options.calibration is None:
        raise ValueError(
            "--int8 needs --calibration FOLDER, with some hundreds of images like those to caption; "
            f"{MAX_CALIBRATION_IMAGES} of them are used."
        )
    if not expanded(options.calibration).is_dir():
        raise FileNotFoundError(f"--calibration ({options.calibration}): no such folder; name one with images.")
    return list(find_images([options.calibration]))

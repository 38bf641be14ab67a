"""`fusion-captioner caption`: images in, JSON lines out; one bad image does not stop the others.

Images are prefetched while the captioner works. torch is imported only where a checkpoint runs on it.
"""

import argparse
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.commands.shared_flags import add_hub_flags, add_length_penalty, check_at_least_one

if TYPE_CHECKING:
    from fusion_captioner.inference.caption_file import CaptionFile
    from fusion_captioner.inference.launched_process import LaunchedProcess

HELP = "caption images"
EPILOG = """\
A large folder, on one machine or on several that share it:

  fusion-captioner caption photos/ --model runs/captioner --out captions.jsonl
  torchrun --nproc_per_node 4 -m fusion_captioner.cli caption photos/ --model runs/captioner --out captions.jsonl

Each process writes a part, and the last one merges them. To continue after an interruption, repeat the command with
--resume, in any number of processes; it merges the parts that it finds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Caption images: files, folders (all images in them) and URLs.\n"
        "One JSON line per image, on stdout or in a file."
    )
    parser.epilog = EPILOG
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder or URL")
    parser.add_argument(
        "--model",
        default=DEFAULT_CHECKPOINT,
        help="folder or Hub name of the captioner, or folder of an export (default: the captioner in the package)",
    )
    parser.add_argument(
        "--runtime",
        choices=["torch", "onnx", "openvino"],
        help="runtime of the model (default: onnx for the captioner in the package, or else what the model is for)",
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        help="type of the image encoder on torch; auto measures which is faster on this machine (default: float32)",
    )
    parser.add_argument(
        "--prompt", default="", help="the words that captions begin with, or a question; captions do not repeat them"
    )
    parser.add_argument("--beams", type=int, default=3, help="beam size; 1 is greedy (default: 3)")
    add_length_penalty(parser)
    parser.add_argument("--num-captions", type=int, default=1, help="captions per image (default: 1)")
    parser.add_argument("--sample", action="store_true", help="draw words at random instead of taking the best")
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of --sample (default: 1.0)")
    parser.add_argument("--max-new-tokens", type=int, default=30, help="maximum length in tokens (default: 30)")
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of --sample (default: 0)")
    parser.add_argument("--out", metavar="FILE", help="write the lines to a file, each at once, instead of to stdout")
    parser.add_argument("--resume", action="store_true", help="skip the images that --out has captions of")
    add_hub_flags(parser)


def run(options: argparse.Namespace) -> int:
    """
    Returns:
        0, or 1 if some of the images could not be captioned, or 2 if none could. Of several processes the last one
        returns that for all, and the others 0: launchers end everything as soon as a process returns another status.
    """
    from fusion_captioner.data.image_files import find_images
    from fusion_captioner.inference.caption_file import CaptionFile, lock_captions
    from fusion_captioner.inference.image_batches import Summary
    from fusion_captioner.inference.launched_process import launched_process

    process = launched_process()
    _check(options, process)
    images = list(find_images(options.images))
    with lock_captions(options.out, process) if options.out else nullcontext():
        file = CaptionFile(options.out, images, process, options.resume) if options.out else None
        mine = range(process.rank, len(images), process.processes)
        left = [place for place in mine if file is None or images[place] not in file]
        bad = _caption_images(images, left, len(mine), options, process, file) if left else 0
        summary: Summary | None = Summary(len(mine), bad)
        if file is not None:
            summary = file.finish(Summary(len(mine), bad))
    return 0 if summary is None else summary.exit_status("captioned")


def _check(options: argparse.Namespace, process: "LaunchedProcess") -> None:
    check_at_least_one(options, "beams", "num_captions", "max_new_tokens", "batch_size")
    if not options.sample and options.num_captions > options.beams:
        raise ValueError(
            f"--num-captions ({options.num_captions}) needs at least as many --beams ({options.beams}), or --sample."
        )
    if not 0 < options.temperature < float("inf"):
        raise ValueError(f"--temperature ({options.temperature}) must be above 0, such as 0.7.")
    if options.resume and not options.out:
        raise ValueError("--resume needs --out FILE, the file to continue.")
    if process.processes > 1 and not options.out:
        raise ValueError(f"{process.processes} processes need --out FILE, which their captions are merged in.")


def _caption_images(
    images: list[str],
    left: list[int],
    total: int,
    options: argparse.Namespace,
    process: "LaunchedProcess",
    file: "CaptionFile | None",
) -> int:
    """Caption the images at the places `left`, the last of `total`; returns how many of them could not be."""
    from fusion_captioner.inference.captioner import load_on_runtime
    from fusion_captioner.inference.image_batches import ImageBatches
    from fusion_captioner.printing import print_json

    captioner = load_on_runtime(
        options.model,
        options.revision,
        options.runtime,
        num_threads=process.threads,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    settings: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "num_return_sequences": options.num_captions,
        **(
            {"do_sample": True, "temperature": options.temperature, "num_beams": 1}
            if options.sample
            else {"num_beams": options.beams}
        ),
        **({} if options.length_penalty is None else {"length_penalty": options.length_penalty}),
    }
    if settings["num_beams"] == 1:
        # the captioner's own length penalty is one of beam search
        settings["length_penalty"] = 1.0
    batches = ImageBatches(images, left, options.batch_size, captioner.image_settings, process, total)
    for start, names, pictures in batches:
        # other draws for other batches
        captions = captioner.caption(pictures, options.prompt, seed=options.seed + start, **settings)
        for name, texts in zip(names, captions, strict=True):
            entry = {"image": name, "caption": texts[0]} | ({"captions": texts} if len(texts) > 1 else {})
            if file is None:
                print_json(entry)
            else:
                file.write(entry)
    return batches.bad

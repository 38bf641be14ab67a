"""`fusion-captioner caption`: images in, captions out; one bad image does not stop the others.

Images are prefetched while the captioner works. torch is imported only where a checkpoint runs on it.
"""

import argparse
import codecs
import errno
import os
import sys
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.checkpoints.bundled import checkpoint_name
from fusion_captioner.commands.shared_flags import (
    RUNTIMES,
    add_dtype,
    add_hub_flags,
    add_language,
    add_length_penalty,
    add_no_repeat_ngram,
    check_at_least_one,
    check_search,
    check_texts,
)
from fusion_captioner.files import expanded
from fusion_captioner.given_values import check_repetition_penalty, check_seed, check_temperature

if TYPE_CHECKING:
    from fusion_captioner.inference.caption_outputs import CaptionOutputs
    from fusion_captioner.inference.launched_process import LaunchedProcess

HELP = "caption images"
EPILOG = """\
A large folder, on one machine or on several that share it:

  fusion-captioner caption photos/ --model runs/captioner --out captions.jsonl
  torchrun --nproc_per_node 4 -m fusion_captioner.cli caption photos/ --model runs/captioner --out captions.jsonl

Each process writes a part, and the last one merges them. To continue after an interruption, repeat the command with
--resume, in any number of processes; it merges the parts that it finds.

Training pictures and alt text:

  fusion-captioner caption photos/ --sidecar .txt --prefix "ohwx dog," --out captions.jsonl
  fusion-captioner caption photos/ --format csv --max-chars 125 --out captions.csv"""

# Flags of generation that transformers calls by another name
SETTINGS = {
    "min_new_tokens": "min_new_tokens",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "top_p": "top_p",
    "length_penalty": "length_penalty",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Caption images: files, folders (all images in them) and URLs.\n"
        "One row per image, on stdout or in a file, and on request a caption file next to each photo."
    )
    parser.epilog = EPILOG
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder or URL")
    parser.add_argument(
        "--from-file", metavar="LIST", help="read more names of images from a file, one per line; - is stdin"
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_CHECKPOINT,
        type=checkpoint_name,
        help="folder or Hub name of the captioner, or folder of an export (default: bundled, the one in the package)",
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        help="runtime of the model (default: onnx for the captioner in the package, or else what the model is for)",
    )
    add_dtype(parser)
    parser.add_argument(
        "--engine",
        choices=["ray"],
        help="caption on a cluster of machines: names are then also Parquet and WebDataset files, in any store that "
        "fsspec knows (needs the extra 'ray'; default: this process)",
    )
    parser.add_argument(
        "--prompt", default="", help="the words that captions begin with, or a question; captions do not repeat them"
    )
    add_language(parser)
    parser.add_argument("--beams", type=int, default=3, help="beam size; 1 is greedy (default: 3)")
    add_length_penalty(parser)
    parser.add_argument("--num-captions", type=int, default=1, help="captions per image (default: 1)")
    parser.add_argument("--sample", action="store_true", help="draw words at random instead of taking the best")
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of --sample (default: 1.0)")
    parser.add_argument("--max-new-tokens", type=int, default=30, help="maximum length in tokens (default: 30)")
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of --sample (default: 0)")
    _add_word_flags(parser)
    _add_output_flags(parser)
    add_hub_flags(parser)


def _add_word_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("words of captions")
    group.add_argument("--prefix", default="", help="words in front of every caption, such as a trigger word")
    group.add_argument("--suffix", default="", help="words behind every caption")
    group.add_argument(
        "--max-chars",
        type=int,
        metavar="N",
        help="cut captions to N characters, prefix and suffix included, at the end of a word",
    )
    group.add_argument("--min-new-tokens", type=int, metavar="N", help="minimum length in tokens (default: 0)")
    group.add_argument(
        "--bad-words",
        nargs="+",
        action="extend",
        default=[],
        metavar="WORD",
        help="words and phrases that no caption has; separate them by commas, or give several",
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="F", help="above 1: repeat fewer words, such as 1.2 (default: 1)"
    )
    add_no_repeat_ngram(group)
    group.add_argument(
        "--top-p", type=float, metavar="F", help="--sample draws from the likeliest words that make up F together"
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("outputs")
    group.add_argument("--out", metavar="FILE", help="write the rows to a file, each at once, instead of to stdout")
    group.add_argument(
        "--format",
        choices=["jsonl", "csv", "txt"],
        help="JSON lines, a CSV table, or name, tab and caption (default: by the ending of --out, else jsonl)",
    )
    group.add_argument("--resume", action="store_true", help="skip the images that --out has captions of")
    group.add_argument(
        "--sidecar",
        metavar="ENDING",
        help="write a caption file next to each photo, such as .txt: photo.jpg gets photo.txt; those that are there "
        "stay",
    )
    group.add_argument(
        "--write-metadata",
        action="store_true",
        help="write the caption into each photo, as its XMP and IPTC description, where it has none; pixels stay as "
        "they are (needs the extra 'metadata')",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace caption files and descriptions that are there"
    )


def run(options: argparse.Namespace) -> int:
    """
    Returns:
        0, or 1 if some of the images could not be captioned, or 2 if none could. Of several processes the last one
        returns that for all, and the others 0: launchers end everything as soon as a process returns another status.
    """
    from fusion_captioner.inference.caption_file import CaptionFile, lock_captions
    from fusion_captioner.inference.caption_formats import caption_format
    from fusion_captioner.inference.caption_outputs import url_problems
    from fusion_captioner.inference.image_batches import Summary
    from fusion_captioner.inference.launched_process import launched_process
    from fusion_captioner.printing import print_note

    process = launched_process()
    _check(options, process)
    if options.engine == "ray":
        return _run_on_ray(options)
    images, problems = _find_images(options, process)
    sidecars = _sidecars(options)
    if sidecars is not None:
        problems = sidecars.problems(images) | problems
    if options.sidecar or options.write_metadata:
        problems |= url_problems(images)
    format = caption_format(options.format, options.out, options.num_captions)
    with lock_captions(options.out, process) if options.out else nullcontext():
        file = CaptionFile(options.out, images, process, options.resume, format) if options.out else None
        outputs = _outputs(options, file, sidecars, format)
        mine = range(process.rank, len(images), process.processes)
        bad, other, left = 0, 0, []
        for place in mine:
            if place in problems:
                print_note(problems[place])
                bad += 1
            elif file is not None and (captions := file.captions_of(images[place])) is not None:
                bad += not outputs.complete(images[place], captions)
                other += not all(_is_worded(text, options) for text in captions)
            elif outputs.is_done(images[place]):
                outputs.kept += 1
            else:
                left.append(place)
        if other:
            print_note(f"{other} captions of --out do not have this --prefix, --suffix or --max-chars, and stay")
        if left:
            bad += _caption_images(images, left, len(mine), options, process, outputs)
        summary: Summary | None = Summary(len(mine), bad, outputs.kept)
        if file is not None:
            summary = file.finish(Summary(len(mine), bad, outputs.kept))
    return 0 if summary is None else summary.exit_status("captioned")


def _run_on_ray(options: argparse.Namespace) -> int:
    from fusion_captioner.file_locks import lock_output
    from fusion_captioner.files import check_output_file
    from fusion_captioner.inference.ray_engine import Captioning, caption_on_ray

    captioning = Captioning(
        _model(options),
        _generation_settings(options),
        options.prompt,
        options.language,
        options.seed,
        options.batch_size,
        partial(_worded, options=options),
    )
    is_local = "://" not in options.out
    if is_local:
        check_output_file(options.out, "--out")
    with lock_output(options.out, "--out") if is_local else nullcontext():
        return caption_on_ray(_names(options), captioning, options.out, options.format).exit_status("captioned")


def _names(options: argparse.Namespace) -> list[str]:
    names = options.images + (_listed(options.from_file) if options.from_file else [])
    if not names:
        raise ValueError("no IMAGE is given; name files, folders or URLs, or give a list of them with --from-file.")
    return names


def _find_images(options: argparse.Namespace, process: "LaunchedProcess") -> tuple[list[str], dict[int, str]]:
    """The images that are named, and what is wrong with those that are not there, by their place."""
    from fusion_captioner.data.image_files import find_images_one_by_one
    from fusion_captioner.inference.caption_outputs import without_repetitions
    from fusion_captioner.printing import print_note

    images, problems = find_images_one_by_one(_names(options))
    different = without_repetitions(images)
    writes_next_to = bool(options.sidecar or options.write_metadata)
    if (again := len(images) - len(different)) and process.rank == 0:
        result = "each is captioned once" if writes_next_to else "each is captioned as often as it is named"
        print_note(f"{again} of {len(images)} images are named more than once; {result}")
    if not again or not writes_next_to:
        return images, problems
    reasons = {images[place]: reason for place, reason in problems.items()}
    return different, {place: reasons[image] for place, image in enumerate(different) if image in reasons}


def _listed(name: str) -> list[str]:
    """
    The names in a list of images, a line each; of `find -print0`, they end with NUL instead. The text is in UTF-8 or
    the machine's own encoding, or in UTF-16 behind its mark, as PowerShell writes it.

    Raises:
        ValueError: the list has no name, or is no text.
        OSError: it cannot be read.
    """
    try:
        if name == "-" and sys.stdin is None:
            raise OSError(errno.EBADF, "standard input is closed")
        content = sys.stdin.buffer.read() if name == "-" else expanded(name).read_bytes()
    except OSError as error:
        raise type(error)(
            f"--from-file ({name}): cannot be read ({error.strerror}); name a file with an image per line."
        ) from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            content = content.decode("utf-16").encode()
        except UnicodeError as error:
            raise ValueError(f"--from-file ({name}): is no UTF-16 text ({error}); save it as UTF-8.") from error
    lines = content.split(b"\0") if b"\0" in content else content.removeprefix(b"\xef\xbb\xbf").splitlines()
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        raise ValueError(f"--from-file ({name}) names no images; it must have one per line.")
    return names


def _sidecars(options: argparse.Namespace) -> Any:
    from fusion_captioner.inference.caption_outputs import Sidecars, check_sidecar_ending

    if options.sidecar is None:
        return None
    protected = [name for name in (options.out, options.from_file) if name and name != "-"]
    return Sidecars(check_sidecar_ending(options.sidecar), protected)


def _outputs(options: argparse.Namespace, file: Any, sidecars: Any, format: Any) -> "CaptionOutputs":
    from fusion_captioner.inference.caption_outputs import CaptionOutputs

    describe = None
    if options.write_metadata:
        from fusion_captioner.inference.photo_metadata import import_exiv2, write_description

        import_exiv2()
        describe = write_description
    return CaptionOutputs(format, file, sidecars, describe, options.overwrite)


def _check(options: argparse.Namespace, process: "LaunchedProcess") -> None:
    check_at_least_one(options, "beams", "num_captions", "max_new_tokens", "batch_size")
    check_search(options)
    check_texts(options, "prompt", "bad_words", "prefix", "suffix")
    if not options.sample and options.num_captions > options.beams:
        raise ValueError(
            f"--num-captions ({options.num_captions}) needs at least as many --beams ({options.beams}), or --sample."
        )
    check_temperature(options.temperature, "--temperature")
    check_seed(options.seed, "--seed")
    _check_words(options)
    if options.overwrite and not (options.sidecar or options.write_metadata):
        raise ValueError("--overwrite is for --sidecar and --write-metadata; add one of them, or leave it out.")
    if options.resume and not options.out:
        raise ValueError("--resume needs --out FILE, the file to continue.")
    if options.engine == "ray":
        flags = ("resume", "sidecar", "write_metadata")
        if others := [f"--{flag.replace('_', '-')}" for flag in flags if getattr(options, flag)]:
            raise ValueError(
                f"--engine ray does not do {' and '.join(others)}; leave {'it' if len(others) == 1 else 'them'} out."
            )
        if not options.out:
            raise ValueError("--engine ray needs --out FILE, such as captions.parquet or captions.jsonl.")
        if process.processes > 1:
            raise ValueError("--engine ray starts its own processes; run the command without a launcher.")
    if process.processes > 1 and options.from_file == "-":
        raise ValueError(
            f"--from-file - cannot be shared by {process.processes} processes; write the names to a file."
        )
    if process.processes > 1 and not options.out:
        raise ValueError(f"{process.processes} processes need --out FILE, which their captions are merged in.")


def _check_words(options: argparse.Namespace) -> None:
    from fusion_captioner.inference.caption_texts import framed

    check_at_least_one(options, "max_chars", "no_repeat_ngram")
    if options.min_new_tokens is not None and not 0 <= options.min_new_tokens <= options.max_new_tokens:
        raise ValueError(
            f"--min-new-tokens ({options.min_new_tokens}) must be 0 to --max-new-tokens ({options.max_new_tokens})."
        )
    if options.repetition_penalty is not None:
        check_repetition_penalty(options.repetition_penalty, "--repetition-penalty")
    if options.top_p is not None and not options.sample:
        raise ValueError(f"--top-p ({options.top_p}) is for --sample; add it, or leave --top-p out.")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise ValueError(f"--top-p ({options.top_p}) must be above 0 and at most 1, such as 0.9.")
    options.bad_words = [word.strip() for words in options.bad_words for word in words.split(",")]
    for flag in ("prefix", "suffix"):
        if not getattr(options, flag).replace(" ", "x").isprintable():
            raise ValueError(f"--{flag} ({getattr(options, flag)!r}) must be words in one line.")
    frame = len(framed("x", options.prefix, options.suffix)) - 1
    if options.max_chars is not None and options.max_chars <= frame:
        raise ValueError(
            f"--max-chars ({options.max_chars}) leaves no room for a caption: --prefix and --suffix take {frame}."
        )


def _worded(texts: list[str], options: argparse.Namespace) -> list[str]:
    """
    Captions with prefix and suffix, and in the length that is wanted.

    Raises:
        ValueError: no word of a caption fits in.
    """
    from fusion_captioner.inference.caption_texts import framed, shortened

    if options.max_chars is not None:
        room = options.max_chars - len(framed("x", options.prefix, options.suffix)) + 1
        short = [shortened(text, room) for text in texts]
        if any(text and not cut for text, cut in zip(texts, short, strict=True)):
            raise ValueError(f"no word of its caption fits in --max-chars ({options.max_chars}); raise it.")
        texts = short
    return [framed(text, options.prefix, options.suffix) for text in texts]


def _is_worded(text: str, options: argparse.Namespace) -> bool:
    """Whether a caption of an earlier run has prefix, suffix and length of this one."""
    frame = text.startswith(options.prefix.strip()) and text.endswith(options.suffix.strip())
    return frame and (options.max_chars is None or len(text) <= options.max_chars)


def _model(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("model", "revision", "runtime", "dtype", "trust_remote_code")}


def _generation_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags say about the search for words, by transformers' names."""
    settings: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "num_return_sequences": options.num_captions,
        **(
            {"do_sample": True, "temperature": options.temperature, "num_beams": 1}
            if options.sample
            else {"num_beams": options.beams}
        ),
        **{name: value for flag, name in SETTINGS.items() if (value := getattr(options, flag)) is not None},
        **({"bad_words": options.bad_words} if options.bad_words else {}),
    }
    if settings["num_beams"] == 1:
        # the captioner's own length penalty is one of beam search
        settings["length_penalty"] = 1.0
    return settings


def _caption_images(
    images: list[str],
    left: list[int],
    total: int,
    options: argparse.Namespace,
    process: "LaunchedProcess",
    outputs: "CaptionOutputs",
) -> int:
    """Caption the images at the places `left`, the last of `total`; returns how many of them could not be."""
    from fusion_captioner.inference.captioner import load_on_runtime
    from fusion_captioner.inference.image_batches import ImageBatches
    from fusion_captioner.printing import print_note

    captioner = load_on_runtime(**_model(options), num_threads=process.threads)
    settings = _generation_settings(options)
    batches = ImageBatches(images, left, options.batch_size, captioner.image_settings, process, total)
    unwritten = 0
    for start, names, pictures in batches:
        # other draws for other batches
        captions = captioner.caption(
            pictures, options.prompt, language=options.language, seed=options.seed + start, **settings
        )
        for name, texts in zip(names, captions, strict=True):
            try:
                unwritten += not outputs.write(name, _worded(texts, options))
            except ValueError as error:
                print_note(f"{name}: {error}")
                unwritten += 1
    return batches.bad + unwritten

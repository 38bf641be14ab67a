"""`fusion-captioner caption`: images in, JSON lines out; one bad image does not stop the others.

Images are read ahead while the captioner works. torch is imported only where a checkpoint runs on it.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from PIL import Image

from fusion_captioner.data.image_files import find_images
from fusion_captioner.inference.caption_file import CaptionFile, json_line
from fusion_captioner.inference.exported_captioner import ExportedCaptioner, is_export
from fusion_captioner.inference.image_batches import ImageBatches, Tally
from fusion_captioner.inference.launched_process import LaunchedProcess, launched_process
from fusion_captioner.inference.progress import Progress


class Captioner(Protocol):
    """What the command needs of a captioner, on whichever runtime."""

    @property
    def image_settings(self) -> Mapping[str, Any]: ...

    def caption(
        self, images: list[Image.Image], prompt: str, *, seed: int | None = None, **settings: Any
    ) -> list[list[str]]: ...


def load(
    model: str, revision: str, runtime: str | None, num_threads: int | None = None, dtype: str | None = None
) -> Captioner:
    """The captioner on the runtime that is asked for, by default the one that `model` is for, with so many threads; on
    torch with an image encoder of type `dtype`, by default float32.

    Raises:
        ValueError: if `model` is for another runtime, or an export, whose type is its own; and what loading raises.
    """
    exported = is_export(model)
    if exported and dtype is not None:
        raise ValueError(
            f"--dtype ({dtype}) is for torch, and {model} is an export, whose type is its own; leave it out."
        )
    if exported and runtime != "torch":
        captioner = ExportedCaptioner(model, num_threads)
        if runtime is not None and captioner.runtime != runtime:
            raise ValueError(
                f"{model}: was exported for --runtime {captioner.runtime}, not {runtime}; leave --runtime out, or export "
                f"the checkpoint with --to {runtime}."
            )
        return captioner
    if exported:
        raise ValueError(
            f"{model}: is an export, which torch does not run; leave --runtime out, or give the checkpoint."
        )
    if runtime in ("onnx", "openvino"):
        raise ValueError(
            f"{model}: is no export; write one with: fusion-captioner export {model} --to {runtime} --out FOLDER"
        )
    from fusion_captioner.commands.quiet_stderr import keep_stderr_quiet
    from fusion_captioner.inference.torch_captioner import TorchCaptioner

    keep_stderr_quiet(reads_data=False)
    return TorchCaptioner(model, revision, num_threads, dtype or "float32")


def caption(options: argparse.Namespace) -> int:
    """Run the command; returns 0, or 1 if some of the images could not be captioned, or 2 if none could.

    Of several processes the last one returns that for all, and the others 0: launchers end everything as soon as one
    process returns something else.
    """
    process = launched_process()
    _check(options, process)
    images = list(find_images(options.images))
    file = CaptionFile(options.out, images, process, options.resume) if options.out else None
    mine = range(process.rank, len(images), process.processes)
    left = [place for place in mine if file is None or images[place] not in file.captioned]
    bad = _caption_images(images, left, len(mine), options, process, file) if left else 0
    tally: Tally | None = Tally(len(mine), bad)
    if file is not None:
        tally = file.finish(Tally(len(mine), bad))
    return 0 if tally is None else tally.exit_status("captioned")


def _check(options: argparse.Namespace, process: LaunchedProcess) -> None:
    for name in ("beams", "num_captions", "max_new_tokens", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} ({getattr(options, name)}) must be at least 1.")
    if not options.sample and options.num_captions > options.beams:
        raise ValueError(
            f"--num-captions ({options.num_captions}) needs at least as many --beams ({options.beams}), or --sample."
        )
    if not 0 < options.temperature < float("inf"):
        raise ValueError(f"--temperature ({options.temperature}) must be above 0, such as 0.7.")
    if options.resume and not options.out:
        raise ValueError("--resume needs --out FILE, which names the captions to go on with.")
    if process.processes > 1 and not options.out:
        raise ValueError(f"{process.processes} processes need --out FILE, which their captions are merged in.")


def _caption_images(
    images: list[str],
    left: list[int],
    total: int,
    options: argparse.Namespace,
    process: LaunchedProcess,
    file: CaptionFile | None,
) -> int:
    """Captions the images at the places `left`, the last of `total`; returns how many of them could not be."""
    captioner = load(options.model, options.revision, options.runtime, process.threads, options.dtype)
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
    with Progress(total, total - len(left), show=total > 1 and process.local_rank == 0) as progress:
        batches = ImageBatches(images, left, options.batch_size, captioner.image_settings, progress, process)
        for start, names, pictures in batches:
            # other draws for other batches
            captions = captioner.caption(pictures, options.prompt, seed=options.seed + start, **settings)
            for name, texts in zip(names, captions, strict=True):
                entry = {"image": name, "caption": texts[0]} | ({"captions": texts} if len(texts) > 1 else {})
                if file is None:
                    progress.print(json_line(entry), sys.stdout)
                else:
                    file.write(entry)
    return batches.bad

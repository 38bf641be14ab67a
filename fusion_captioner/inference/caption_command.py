"""`fusion-captioner caption`: images in, JSON lines out; one bad image does not stop the others.

torch is imported only where a checkpoint runs on it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from fusion_captioner.image_loading import load_image
from fusion_captioner.inference.exported_captioner import ExportedCaptioner, is_export


class Captioner(Protocol):
    """What the command needs of a captioner, on whichever runtime."""

    @property
    def image_size(self) -> tuple[int, int]: ...

    def caption(
        self, images: list[Image.Image], prompt: str, *, seed: int | None = None, **settings: Any
    ) -> list[list[str]]: ...


def find_images(sources: list[str]) -> Iterator[str]:
    """The files, URLs, and images in the folders, that `sources` name.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a folder without images.
    """
    for source in sources:
        if not source:
            raise ValueError("IMAGE ('') is empty; name a file, a folder or a URL.")
        if source.startswith(("http://", "https://")):
            yield source
            continue
        path = Path(source).expanduser()
        if path.is_dir():
            suffixes = Image.registered_extensions()
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
            if not files:
                raise ValueError(f"{source}: the folder holds no images; check the path.")
            yield from map(str, files)
        elif path.exists():
            yield str(path)
        else:
            raise FileNotFoundError(f"{source}: no such file or folder; check the path.")


def load(model: str, revision: str, runtime: str | None) -> Captioner:
    """The captioner on the runtime that is asked for, by default the one that `model` is for.

    Raises:
        ValueError: if `model` is for another runtime; and what loading raises.
    """
    exported = is_export(model)
    if exported and runtime != "torch":
        captioner = ExportedCaptioner(model)
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
    from fusion_captioner.inference.quiet_stderr import keep_stderr_quiet
    from fusion_captioner.inference.torch_captioner import TorchCaptioner

    keep_stderr_quiet(reads_data=False)
    return TorchCaptioner(model, revision)


def caption(options: argparse.Namespace) -> int:
    """Run the command; returns 0, or 1 if some of the images could not be captioned, or 2 if none could."""
    for name in ("beams", "num_captions", "max_new_tokens", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} ({getattr(options, name)}) must be at least 1.")
    if not options.sample and options.num_captions > options.beams:
        raise ValueError(
            f"--num-captions ({options.num_captions}) needs at least as many --beams ({options.beams}), or --sample."
        )
    if not 0 < options.temperature < float("inf"):
        raise ValueError(f"--temperature ({options.temperature}) must be above 0, such as 0.7.")
    images = list(find_images(options.images))
    captioner = load(options.model, options.revision, options.runtime)
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
    batches = ImageBatches(images, options.batch_size, captioner.image_size)
    for start, names, pictures in batches:
        # other draws for other batches
        captions = captioner.caption(pictures, options.prompt, seed=options.seed + start, **settings)
        for name, texts in zip(names, captions):
            line = {"image": name, "caption": texts[0]} | ({"captions": texts} if len(texts) > 1 else {})
            print(json.dumps(line, ensure_ascii=False), flush=True)
    return batches.exit_status("captioned")


class ImageBatches:
    """
    Pictures in batches, read by threads; what is wrong with one that cannot be read is told on stderr.

    Args:
        images: files and URLs.
        batch_size: images at a time.
        target: `(H, W)` that they are resized to.
    """

    def __init__(self, images: list[str], batch_size: int, target: tuple[int, int]) -> None:
        self.images = images
        self.batch_size = batch_size
        self.target = target
        self.bad = 0

    def __iter__(self) -> Iterator[tuple[int, list[str], list[Image.Image]]]:
        """Number of the batch's first image, and of those that can be read names and pictures, at least one."""
        with ThreadPoolExecutor(max_workers=2) as readers:
            for start in range(0, len(self.images), self.batch_size):
                batch = self.images[start : start + self.batch_size]
                names, pictures = [], []
                for name, picture in zip(batch, readers.map(lambda name: _read(name, self.target), batch)):
                    if isinstance(picture, str):
                        self.bad += 1
                        print(f"fusion-captioner: {picture}", file=sys.stderr)
                    else:
                        names.append(name)
                        pictures.append(picture)
                if pictures:
                    yield start, names, pictures

    def exit_status(self, done: str) -> int:
        """0, or 1 if some images could not be read, or 2 if none could; `done` is what was to be done to them."""
        if self.bad and len(self.images) > 1:
            print(f"fusion-captioner: {self.bad} of {len(self.images)} images could not be {done}", file=sys.stderr)
        return 0 if not self.bad else 2 if self.bad == len(self.images) else 1


def _read(name: str, target: tuple[int, int]) -> Image.Image | str:
    """The picture, or what is wrong with it."""
    try:
        return load_image(name, target_size=target)
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())

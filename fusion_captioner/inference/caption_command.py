"""`fusion-captioner caption`: images in, JSON lines out; one bad image does not stop the others."""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fusion_captioner.image_loading import load_image
from fusion_captioner.inference.loading import load_captioner

IMAGE_SUFFIXES = frozenset(Image.registered_extensions())


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
            files = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            )
            if not files:
                raise ValueError(f"{source}: the folder holds no images; check the path.")
            yield from map(str, files)
        elif path.exists():
            yield str(path)
        else:
            raise FileNotFoundError(f"{source}: no such file or folder; check the path.")


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
    model, processor = load_captioner(options.model, options.revision)
    settings: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "num_return_sequences": options.num_captions,
        **(
            {"do_sample": True, "temperature": options.temperature, "num_beams": 1}
            if options.sample
            else {"num_beams": options.beams}
        ),
    }
    torch.manual_seed(options.seed)
    size = processor.image_processor.size
    target = (size["height"], size["width"])
    bad = 0
    with ThreadPoolExecutor(max_workers=2) as readers:
        for start in range(0, len(images), options.batch_size):
            batch = images[start : start + options.batch_size]
            pictures = []
            for name, picture in zip(batch, readers.map(lambda name: _read(name, target), batch)):
                if isinstance(picture, str):
                    bad += 1
                    print(f"fusion-captioner: {picture}", file=sys.stderr)
                else:
                    pictures.append((name, picture))
            if pictures:
                for line in _caption_batch(model, processor, pictures, options.prompt, settings):
                    print(json.dumps(line, ensure_ascii=False), flush=True)
    if bad and len(images) > 1:
        print(f"fusion-captioner: {bad} of {len(images)} images could not be captioned", file=sys.stderr)
    return 0 if not bad else 2 if bad == len(images) else 1


def _read(name: str, target: tuple[int, int]) -> Image.Image | str:
    """The picture, or what is wrong with it."""
    try:
        return load_image(name, target_size=target)
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())


@torch.inference_mode()
def _caption_batch(model, processor, pictures, prompt: str, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    prompts = [prompt] * len(pictures)
    inputs = processor(images=[picture for _, picture in pictures], text=prompts, return_tensors="pt")
    generated = model.generate(**inputs.to(model.device), **settings)[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.batch_decode(generated, skip_special_tokens=True)]
    per_image = settings["num_return_sequences"]
    for index, (name, _) in enumerate(pictures):
        captions = texts[index * per_image : (index + 1) * per_image]
        yield {"image": name, "caption": captions[0]} | ({"captions": captions} if per_image > 1 else {})

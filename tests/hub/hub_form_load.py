"""Loads captioners where `fusion_captioner` cannot be imported, as one does who has only a folder or a name.

`python hub_form_load.py REQUEST.json ANSWER.json`. The request holds `image` (a path), `sources` (`name` and
`revision` of each captioner), and optionally `save_to`, a folder to save the first captioner to, `snippet`, code to
run, and `heads`, with `auto_class`, `name` and `save_to` of each.
"""

import contextlib
import importlib.abc
import io
import json
import sys
from pathlib import Path

MAX_NEW_TOKENS = 10


class Absent(importlib.abc.MetaPathFinder):
    """Makes an installed package unimportable."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fusion_captioner":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return None


def describe(model, base_model, processor, image: str) -> dict:
    """What two loads of one captioner have in common."""
    inputs = processor(images=image, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
    embedding = base_model.get_image_features(inputs["pixel_values"]).pooler_output
    return {
        "tokens": tokens.tolist(),
        "caption": processor.batch_decode(tokens, skip_special_tokens=True)[0],
        "embedding": [round(value, 4) for value in embedding[0].tolist()],
    }


def head_logits(model) -> list[list[float]]:
    """Scores of made-up images and texts, whichever head it is."""
    import torch

    pixel_values = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    input_ids = torch.arange(4, 16).view(2, 6)
    if "MultipleChoice" in type(model).__name__:
        input_ids = input_ids.view(2, 2, 3)
    with torch.no_grad():
        outputs = model(pixel_values=pixel_values, input_ids=input_ids)
    logits = outputs.logits_per_image if "Retrieval" in type(model).__name__ else outputs.logits
    return [[round(value, 4) for value in row] for row in logits.tolist()]


def load_head(name: str, auto_class: str, save_to: str) -> dict:
    import transformers

    model = getattr(transformers, auto_class).from_pretrained(name, trust_remote_code=True)
    model.save_pretrained(save_to)
    return {
        "class": type(model).__name__,
        "module": type(model).__module__.split(".")[0],
        "logits": head_logits(model),
    }


def load(image: str, source: dict, save_to: str | None) -> dict:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageTextToText,
        AutoProcessor,
        pipeline,
    )

    name, keywords = source["name"], {"trust_remote_code": True, "revision": source.get("revision", "main")}
    config = AutoConfig.from_pretrained(name, **keywords)
    base_model = AutoModel.from_pretrained(name, **keywords)
    model = AutoModelForImageTextToText.from_pretrained(name, **keywords)
    processor = AutoProcessor.from_pretrained(name, **keywords)
    image_processor = AutoImageProcessor.from_pretrained(name, **keywords)
    captioner = pipeline("image-text-to-text", model=name, **keywords)
    answer = captioner(images=image, text="", generate_kwargs={"max_new_tokens": MAX_NEW_TOKENS})
    image_processors = [processor.image_processor, image_processor]
    objects = [config, base_model, model, processor, *image_processors, captioner.model, captioner.processor]
    if save_to is not None:
        model.save_pretrained(save_to)
        processor.save_pretrained(save_to)
    return describe(model, base_model, processor, image) | {
        "pipeline": answer[0]["generated_text"],
        "classes": [type(loaded).__name__ for loaded in objects],
        "modules": sorted({type(loaded).__module__.split(".")[0] for loaded in objects}),
    }


def main() -> None:
    sys.meta_path.insert(0, Absent())
    request = json.loads(Path(sys.argv[1]).read_text())
    image = request["image"]
    answer = {"loaded": [], "printed": "", "heads": [load_head(**head) for head in request.get("heads", [])]}
    for source in request["sources"]:
        first = not answer["loaded"]
        answer["loaded"].append(load(image, source, request.get("save_to") if first else None))
    if "snippet" in request:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(request["snippet"], {})  # in the current folder, where its `photo.jpg` lies
        answer["printed"] = printed.getvalue()
    Path(sys.argv[2]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()

"""A checkpoint in half the bytes, to share or to ship."""

import json
from pathlib import Path

import torch

from fusion_captioner.checkpoints.loading import load_captioner
from fusion_captioner.files import atomic_folder, expanded, write_json


def shrink(name: str, revision: str, out: str, with_code: bool = True, trust_remote_code: bool = False) -> Path:
    """
    Save a captioner with its weights rounded to float16. It is loaded as float32 all the same: CPUs compute in it.

    Args:
        name, revision, trust_remote_code: as for `load_captioner`.
        out: folder to write; the model card of a folder goes with it.
        with_code: whether the folder holds the code that `trust_remote_code=True` runs; without it, it loads where the
            package is installed.

    Returns:
        the folder.

    Raises:
        ValueError: if a weight exceeds float16's range; and what `load_captioner` and `atomic_folder` raise.
    """
    model, processor = load_captioner(name, revision, trust_remote_code=trust_remote_code)
    dtype = str(model.dtype).removeprefix("torch.")
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.half()).all():
            raise ValueError(f"{name}: its weight {key!r} exceeds the range of float16 (65504); share it as it is.")
    with atomic_folder(out) as folder:
        model.half().save_pretrained(folder)
        processor.save_pretrained(folder)
        for path in folder.glob("*.json"):
            document = json.loads(path.read_text(encoding="utf-8"))
            for part in (document, *document.values()):
                if isinstance(part, dict):
                    if "dtype" in part:
                        part["dtype"] = dtype
                    if not with_code:
                        part.pop("auto_map", None)
            write_json(path, document)
        if not with_code:
            for path in folder.glob("*.py"):
                path.unlink()
        card = expanded(name) / "README.md"
        if card.is_file():
            (folder / "README.md").write_bytes(card.read_bytes())
    return Path(out)

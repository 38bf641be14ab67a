"""
What tells contents apart: fingerprints of settings and weights, checksums of caches, digests of the files of a folder.

Damage is found before a file is parsed. Neither torch nor NumPy is imported here.
"""

import json
import mmap
import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fusion_captioner.files import write_json

DIGESTS = "digests.json"
CHECKSUM_SIZE = 16  # bytes
# Keys of configs that name classes, places and versions, but change no result. The weights have their own types.
VOLATILE_KEYS = ("processor_class", "auto_map", "transformers_version", "_name_or_path", "architectures", "dtype")


def without_volatile_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """A config without its volatile keys, at any depth."""
    return {
        key: without_volatile_keys(value) if isinstance(value, Mapping) else value
        for key, value in document.items()
        if key not in VOLATILE_KEYS
    }


def fingerprint(about: Any = None, weights: Mapping[str, Any] | None = None, digest_size: int = 8) -> str:
    """
    A hash of settings and weights, in hexadecimal.

    Args:
        about: anything that JSON holds; other values by their text.
        weights: a state dict of torch: names, types, shapes and values count.
        digest_size: bytes.
    """
    digest = blake2b(digest_size=digest_size)
    if about is not None:
        digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    if weights:
        import torch

        for name, tensor in sorted(weights.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # as bytes, since NumPy has no bfloat16
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_bytes(content: bytes) -> str:
    """128 bits of BLAKE2b, in hexadecimal."""
    return blake2b(content, digest_size=16).hexdigest()


def hash_file(path: Path) -> str:
    """[`hash_bytes`] of a file's content."""
    from hashlib import file_digest

    with path.open("rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()


def append_checksum(path: Path) -> None:
    """End a file with a checksum of what it holds, for [`read_checked`]. Readers of Arrow streams ignore it."""
    with path.open("rb+") as file:
        checksum = _checksum(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        file.seek(0, os.SEEK_END)
        file.write(checksum)


def read_checked(path: Path) -> memoryview:
    """
    The content of a file in front of its checksum, memory-mapped. A cache that fails here is made again.

    Raises:
        ValueError: the checksum is another one, or there is none.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size - CHECKSUM_SIZE
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size > 0 else None
    if whole is None or whole[size:] != _checksum(whole[:size]):
        raise ValueError(f"{path}: is damaged: its checksum does not fit")
    return whole[:size]


def write_digests(folder: Path) -> None:
    """Write the digests of all files of a folder into it; the last step of saving it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    write_json(folder / DIGESTS, {path.relative_to(folder).as_posix(): hash_file(path) for path in files})


def digest_problem(folder: Path) -> str | None:
    """Which file of a folder is missing or differs from its digest, in words, or `None`."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        if not isinstance(digests, dict) or not digests:
            return f"{DIGESTS} is damaged"
        missing = [name for name in digests if not (folder / name).is_file()]
    except FileNotFoundError:
        return f"{DIGESTS} is missing"
    except (OSError, ValueError, RecursionError):
        return f"{DIGESTS} is damaged"
    if missing:
        return f"{missing[0]} is missing"
    damaged = [name for name, digest in digests.items() if hash_file(folder / name) != digest]
    return f"{damaged[0]} is damaged" if damaged else None


def _checksum(content: Any) -> bytes:
    from xxhash import xxh3_128_digest  # ten times as fast as BLAKE2b, and caches are large

    return xxh3_128_digest(content)

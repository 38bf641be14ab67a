"""`fusion-captioner download`: published data sets of captions, in the layout that training reads."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_captioner.files import expanded

if TYPE_CHECKING:
    from fusion_captioner.data.published import PublishedDataset, PublishedFile

HELP = "fetch COCO, Karpathy's split of it, or the captions of Flickr30k"
NAMES = ("coco", "karpathy", "flickr30k-annotations")
RECORD = "downloads.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetch a published data set and unpack it in the layout that training reads. What it is, its size and its\n"
        "licence are shown first, and nothing is fetched before you agree. To continue a download that was broken\n"
        "off, repeat the command. Files are checked by their published checksums."
    )
    parser.add_argument("dataset", choices=NAMES, help="the data set")
    parser.add_argument(
        "--out", metavar="FOLDER", help="folder of the data set (default: coco, coco_karpathy, flickr30k)"
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="fetch these parts only; the list shows their names")
    parser.add_argument("--yes", action="store_true", help="agree to size and licence without being asked")
    parser.add_argument("--keep-archives", action="store_true", help="keep the archives after they are unpacked")


def run(options: argparse.Namespace) -> int:
    """Returns 0, or 1 where the user does not agree."""
    from fusion_captioner.data.published import DATASETS
    from fusion_captioner.file_locks import lock_output_folder
    from fusion_captioner.printing import print_line, print_note

    dataset = DATASETS[options.dataset]
    parts = _parts(dataset, options)
    folder = expanded(options.out or dataset.folder)
    with lock_output_folder(folder, "--out"):
        left = {name: part for name, part in parts.items() if not _is_there(folder, part)}
        print_line(_plan(dataset, parts, left, folder), sys.stdout)
        if left:
            _check_room(left, folder, options.keep_archives)
            if not options.yes and not _agrees():
                print_note("nothing was fetched")
                return 1
            for part in left.values():
                _fetch_and_unpack(part, folder, options.keep_archives)
    print_line(f"{folder}: {dataset.hint.format(folder=folder)}", sys.stdout)
    return 0


def _parts(dataset: "PublishedDataset", options: argparse.Namespace) -> "dict[str, PublishedFile]":
    for name in options.only or ():
        if name not in dataset.parts:
            raise ValueError(f"--only ({name}) is no part of {options.dataset}; there are {', '.join(dataset.parts)}.")
    return {name: part for name, part in dataset.parts.items() if not options.only or name in options.only}


def _plan(
    dataset: "PublishedDataset", parts: "dict[str, PublishedFile]", left: "dict[str, PublishedFile]", folder: Path
) -> str:
    """What is to be fetched, for people."""
    lines = [dataset.about, f"licence: {dataset.licence}"]
    for name, part in parts.items():
        state = _readable(part.size) if name in left else "is there"
        lines.append(f"  {name:<12}{state:>10}  {part.url}")
    if left:
        size, unpacked = sum(part.size for part in left.values()), sum(part.unpacked_size for part in left.values())
        lines.append(f"to fetch: {_readable(size)}; unpacked about {_readable(unpacked)}, into {folder}")
    else:
        lines.append(f"all of it is in {folder} already")
    return "\n".join(lines)


def _readable(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _check_room(left: "dict[str, PublishedFile]", folder: Path, keeps_archives: bool) -> None:
    sizes = [part.size for part in left.values()]
    there = sum(_size(folder / f"{part.name}{ending}") for part in left.values() for ending in ("", ".incomplete"))
    need = sum(part.unpacked_size for part in left.values()) + (sum if keeps_archives else max)(sizes) - there
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if need > free:
        raise OSError(
            f"--out ({folder}): {_readable(need)} are needed, and {_readable(free)} are free; make room, choose "
            "another folder, or fetch parts of it with --only."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _agrees() -> bool:
    if not sys.stdin.isatty():
        raise ValueError("nobody can be asked for agreement here; add --yes to agree to size and licence.")
    try:
        return input("Fetch it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _fetch_and_unpack(part: "PublishedFile", folder: Path, keeps_archive: bool) -> None:
    from tqdm import tqdm

    from fusion_captioner.data.archives import unpack
    from fusion_captioner.data.file_downloads import accept, fetch
    from fusion_captioner.files import write_json

    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / part.name
    record = _read_record(folder)
    known = part.checksum or record.get(part.name, {}).get("checksum")
    options: dict[str, Any] = {"desc": part.name, "disable": None, "leave": False, "file": sys.stderr}
    if archive.exists():  # an earlier run has checked it, or somebody has put it there
        archive.replace(archive.with_name(f"{archive.name}.incomplete"))
    with tqdm(total=part.size, unit="B", unit_scale=True, **options) as bar:
        fetched = fetch(part.url, archive, part.size, bar.update)
    found = accept(fetched, archive, known)
    entry = {"url": part.url, "bytes": part.size, "checksum": found, "checksum_was_known": known is not None}
    record[part.name] = entry | {"unpacked": record.get(part.name, {}).get("unpacked", {})}
    write_json(folder / RECORD, record)
    with tqdm(unit=" files", **options) as bar:
        unpack(archive, folder, part.members, bar.update)
    record[part.name]["unpacked"] |= {pattern: _count(folder, pattern) for pattern in part.members}
    write_json(folder / RECORD, record)
    if not keeps_archive:
        archive.unlink()


def _is_there(folder: Path, part: "PublishedFile") -> bool:
    """Whether a part was unpacked, and no fewer files are there now."""
    unpacked = _read_record(folder).get(part.name, {}).get("unpacked", {})
    return all(0 < unpacked.get(pattern, 0) <= _count(folder, pattern) for pattern in part.members)


def _count(folder: Path, pattern: str) -> int:
    return sum(1 for _ in folder.glob(pattern))


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not all(isinstance(entry, dict) for entry in record.values()):
            raise ValueError("it is no record")
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); delete it, and repeat the command.") from error
    return record

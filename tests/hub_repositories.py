"""The repositories of the tests' Hub: files, commits, branches and tags, held in memory.

Nothing here speaks HTTP (`hub_server.py` does). Everything is a function of what was pushed and in which order: commit
hashes and dates hold no clock and no random number, so that a failing test fails the same way again.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from pathlib import PurePosixPath

CREATED = datetime(2026, 1, 1, tzinfo=UTC)
MAX_REGULAR_SIZE = 10_000_000  # bytes: the Hub takes nothing larger into git itself
# The Hub's own first commit holds such a file; what it lists is stored by Git LFS.
GIT_ATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in (
        "arrow",
        "bin",
        "h5",
        "jpg",
        "npz",
        "onnx",
        "parquet",
        "png",
        "pt",
        "pth",
        "safetensors",
        "tar",
        "zip",
    )
)


class HubError(Exception):
    """A refusal that the server turns into an HTTP error.

    Args:
        status: HTTP status.
        message: what the client shows its user (`X-Error-Message`).
        code: `X-Error-Code`, by which `huggingface_hub` picks its exception: `RepoNotFound`, `RevisionNotFound` or
            `EntryNotFound`.
        commit: `X-Repo-Commit`: the client caches under it that a file does not exist.
    """

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


@dataclass(frozen=True)
class File:
    """A file's bytes and whether git holds them (`lfs=False`) or only a pointer to them (`lfs=True`)."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git stores in place of a large file (Git LFS specification, version 1)."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @property
    def blob_id(self) -> str:
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        """The name that the file gets in the client's cache."""
        return self.sha256 if self.lfs else self.blob_id

    def tree_entry(self, path: str) -> dict:
        """The file as the `tree` and `paths-info` routes list it."""
        entry: dict = {"type": "file", "path": path, "oid": self.blob_id, "size": len(self.content)}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return entry

    def sibling(self, path: str, with_blob: bool) -> dict:
        """The file as repository information lists it; LFS's hash has another name there."""
        if not with_blob:
            return {"rfilename": path}
        sibling: dict = {"rfilename": path, "blobId": self.blob_id, "size": len(self.content)}
        if self.lfs:
            sibling["lfs"] = {"sha256": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return sibling


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    date: str  # ISO 8601
    files: dict[str, File]

    def file(self, path: str) -> File:
        if path not in self.files:
            raise HubError(404, f"{path} does not exist at commit {self.oid}.", "EntryNotFound", self.oid)
        return self.files[path]

    def listing(self, folder: str, recursive: bool) -> list[dict]:
        """Files and folders below `folder` ("" is the root) as the `tree` route lists them, by path."""
        below = [path for path in self.files if not folder or path.startswith(f"{folder}/")]
        if folder and not below:
            raise HubError(404, f"The folder {folder} does not exist at commit {self.oid}.", "EntryNotFound", self.oid)
        parents = {str(parent) for path in below for parent in PurePosixPath(path).parents}
        folders = {parent for parent in parents if parent != "." and parent.startswith(f"{folder}/" if folder else "")}
        listed = sorted([*below, *folders])
        if not recursive:
            listed = [path for path in listed if str(PurePosixPath(path).parent) == (folder or ".")]
        return list(self.paths_info(listed))

    def paths_info(self, paths: Iterable[str]) -> Iterable[dict]:
        """Those of `paths` that exist, files and folders."""
        for path in paths:
            if path in self.files:
                yield self.files[path].tree_entry(path)
            elif inside := [name for name in sorted(self.files) if name.startswith(f"{path}/")]:
                content = "".join(f"{name} {self.files[name].blob_id}\n" for name in inside)
                tree_id = hashlib.sha1(content.encode()).hexdigest()
                yield {"type": "directory", "path": path, "oid": tree_id, "size": 0}


@dataclass
class Repository:
    """A model or dataset repository.

    Args:
        kind: `models` or `datasets`, as in the Hub's routes.
        id: `namespace/name`.
        private: whether a token is needed to read.
    """

    kind: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attributes = File(GIT_ATTRIBUTES.encode(), lfs=False)
        self._add_commit("main", None, "initial commit", "", {".gitattributes": attributes})

    def revision(self, name: str) -> Commit:
        """The commit that a branch, tag or commit hash means."""
        oid = self.branches.get(name) or self.tags.get(name) or name
        if oid not in self.commits:
            raise HubError(404, f"{self.id} has no branch, tag or commit {name}.", "RevisionNotFound")
        return self.commits[oid]

    def branch(self, name: str) -> Commit:
        """The newest commit of a branch: what can be pushed to."""
        if name not in self.branches:
            raise HubError(404, f"{self.id} has no branch {name} to push to.", "RevisionNotFound")
        return self.commits[self.branches[name]]

    def history(self, revision: str) -> Iterable[Commit]:
        """Commits up to `revision`, the newest first."""
        oid: str | None = self.revision(revision).oid
        while oid is not None:
            yield self.commits[oid]
            oid = self.commits[oid].parent

    def upload_mode(self, branch: str, path: str, size: int, sample: bytes) -> str:
        """`"lfs"` for what `.gitattributes` names, large files and binary ones; `"regular"` for the others."""
        attributes = self.branch(branch).files.get(".gitattributes")
        lines = attributes.content.decode().splitlines() if attributes else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        named = any(fnmatch(PurePosixPath(path).name, pattern) for pattern in patterns)
        return "lfs" if named or size > MAX_REGULAR_SIZE or b"\0" in sample else "regular"

    def push(
        self, branch: str, header: dict, added: dict[str, File], deleted: list[str], deleted_folders: list[str]
    ) -> Commit:
        """A commit on `branch` with the files of `added` and without those deleted."""
        head = self.branch(branch)
        if header.get("parentCommit", head.oid) != head.oid:
            raise HubError(412, f"{branch} has moved to {head.oid}: expected {header['parentCommit']}.")
        files = dict(head.files)
        for path in deleted:
            if path not in files:
                raise HubError(404, f"A file with this name doesn't exist: {path}.", "EntryNotFound")
            del files[path]
        for folder in deleted_folders:
            prefix = folder.rstrip("/") + "/"
            if not any(path.startswith(prefix) for path in files):
                raise HubError(404, f"A folder with this name doesn't exist: {folder}.", "EntryNotFound")
            files = {path: file for path, file in files.items() if not path.startswith(prefix)}
        return self._add_commit(branch, head.oid, header["summary"], header["description"], files | added)

    def _add_commit(self, branch: str, parent: str | None, title: str, message: str, files: dict) -> Commit:
        number = len(self.commits)
        content = [self.id, number, parent, title, message, [[path, files[path].blob_id] for path in sorted(files)]]
        oid = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        date = (CREATED + timedelta(seconds=number)).isoformat().replace("+00:00", ".000Z")
        self.commits[oid] = Commit(oid, parent, title, message, date, files)
        self.branches[branch] = oid
        return self.commits[oid]

    def info(self, revision: str, with_blobs: bool) -> dict:
        """Repository information at `revision`, as the Hub derives it from the card, the config and the weights."""
        commit = self.revision(revision)
        card = card_metadata(commit.files["README.md"].content.decode()) if "README.md" in commit.files else {}
        info: dict = {
            "id": self.id,
            "author": self.id.split("/")[0],
            "sha": commit.oid,
            "createdAt": CREATED.isoformat().replace("+00:00", ".000Z"),
            "lastModified": commit.date,
            "private": self.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags", []),
            "siblings": [commit.files[path].sibling(path, with_blobs) for path in sorted(commit.files)],
        }
        if self.kind == "models":
            info["modelId"] = self.id
            info |= {key: card[key] for key in ("pipeline_tag", "library_name") if key in card}
            if "config.json" in commit.files:
                config = json.loads(commit.files["config.json"].content)
                info["config"] = {
                    key: config[key] for key in ("architectures", "auto_map", "model_type") if key in config
                }
            weights = [
                file.content
                for path, file in commit.files.items()
                if path.endswith(".safetensors") and "/" not in path  # not those of checkpoints in folders
            ]
            if parameters := sum(map(safetensors_parameters, weights), Counter()):
                info["safetensors"] = {"parameters": dict(parameters), "total": parameters.total()}
        return info


def safetensors_parameters(content: bytes) -> Counter[str]:
    """Number of parameters of each dtype, from the header of a safetensors file; none where it is not one."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError:
        return Counter()
    parameters: Counter[str] = Counter()
    for name, tensor in header.items():
        if name != "__metadata__":
            parameters[tensor["dtype"]] += math.prod(tensor["shape"])
    return parameters


def card_metadata(text: str) -> dict[str, str | list[str]]:
    """The top-level strings and lists of strings in a card's YAML block, e.g. `pipeline_tag` and `tags`.

    The standard library has no YAML, so deeper values are only checked to be indented; `ModelCard.load` reads them.

    Raises:
        ValueError: a block that is not closed, or a line that is no YAML mapping.
    """
    lines = text.splitlines()
    if not lines or lines[0] != "---":
        return {}
    if "---" not in lines[1:]:
        raise ValueError("The metadata block opened by `---` is not closed by a second `---`.")
    metadata: dict[str, str | list[str]] = {}
    items: list[str] | None = None  # those of the key above, while it has no value of its own
    for number, line in enumerate(lines[1 : lines.index("---", 1)], start=2):
        if match := re.fullmatch(r"([\w-]+):(?:\s+(.*))?", line):
            value = (match[2] or "").strip("\"'")
            items = [] if value in ("", "[]") else None
            metadata[match[1]] = value if items is None else items
        elif items is not None and (item := re.fullmatch(r"\s*- (.*)", line)):
            items.append(item[1].strip("\"'"))
        elif not re.fullmatch(r"(\s*#.*|\s*| +\S.*)", line):
            raise ValueError(f"Line {number} of the metadata is not `key: value`: {line!r}.")
    return metadata

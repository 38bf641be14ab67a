"""A Hub for the tests: the routes by which the real client pushes and loads models and data sets, over HTTP.

Repositories are held in memory and served from a free port of 127.0.0.1. Every file counts as small, so that neither
Git LFS nor Xet is needed; there is one branch, `main`. What else the client asks for is refused and noted in
`failures`.
"""

import base64
import hashlib
import json
import os
import re
import threading
import traceback
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import yaml

TOKEN = "hf_token_of_the_tests"
Files = dict[str, bytes]


class HubError(Exception):
    """A refusal. `code` is how the client picks its exception: `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`."""

    def __init__(self, status: int, code: str, **headers: str) -> None:
        super().__init__(code)
        self.status, self.headers = status, {"X-Error-Code": code, **headers}


@dataclass
class Response:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    """The files of each commit by its hash, and the commits that `main` and tags point to."""

    commits: dict[str, Files] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files) -> str:
        content = [len(self.commits), sorted((path, git_hash(content)) for path, content in files.items())]
        self.revisions["main"] = oid = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[oid] = files
        return oid

    def resolve(self, revision: str) -> str:
        oid = self.revisions.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound")
        return oid


class HubServer:
    """A running Hub with the one user `user`; a context manager that stops it and checks that nothing was refused.

    Args:
        home: `HF_HOME` of the clients (cache, dynamic modules); made when first used.

    Attributes:
        url: address of the Hub.
        failures: requests that this Hub has no answer for, with tracebacks.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.failures: list[str] = []
        self.repositories: dict[str, Repository] = {}  # by `models/user/name` or `datasets/user/name`
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        assert not self.failures, "\n".join(self.failures)

    def stop(self) -> None:
        """Refuse connections from now on. Stopping twice is fine."""
        self.server.shutdown()
        self.server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of a subprocess that uses this Hub.

        Another `HF_HOME` is another machine: `hub.environment | {"HF_HOME": str(folder)}`.
        """
        # Caches and offline switches of the caller must not leak into the subprocess.
        own = ("HF_", "HUGGING", "TRANSFORMERS_")
        outer = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        no_proxy = ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY", "")]))
        return outer | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": TOKEN,
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }

    def files(self, repository: str, revision: str = "main") -> Files:
        """The files of `models/user/name` or `datasets/user/name` at a branch, tag or commit."""
        found = self._repository(repository)
        return found.commits[found.resolve(revision)]

    def _repository(self, key: str) -> Repository:
        if key not in self.repositories:
            raise HubError(404, "RepoNotFound")
        return self.repositories[key]

    def answer(self, method: str, address: str, body: bytes) -> Response:
        path, _, query = address.partition("?")
        match method, *map(unquote, path.strip("/").split("/")):
            case "POST", "api", "validate-yaml":
                return validate_card(json.loads(body)["content"])
            case "POST", "api", "repos", "create":
                return self.create(json.loads(body))
            case "GET", "api", kind, user, name:
                return self.info(f"{kind}/{user}/{name}", "main")
            case "GET", "api", kind, user, name, "revision", revision:
                return self.info(f"{kind}/{user}/{name}", revision)
            case "GET", "api", kind, user, name, "tree", revision, *folder:
                return self.tree(f"{kind}/{user}/{name}", revision, "/".join(folder), "recursive=true" in query)
            case "GET", "datasets", user, name, "resolve", revision, *file:
                return self.file(f"datasets/{user}/{name}", revision, "/".join(file))
            case "GET", user, name, "resolve", revision, *file:
                return self.file(f"models/{user}/{name}", revision, "/".join(file))
            case "POST", "api", _, _, _, "preupload", "main":
                asked = [file["path"] for file in json.loads(body)["files"]]
                answers = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
                return json_response({"files": answers})
            case "POST", "api", kind, user, name, "commit", "main":
                return self.commit(f"{kind}/{user}/{name}", [json.loads(line) for line in body.splitlines()])
            case "POST", "api", kind, user, name, "tag", revision:
                repository = self._repository(f"{kind}/{user}/{name}")
                repository.revisions[json.loads(body)["tag"]] = repository.resolve(revision)
                return json_response({})
        raise NotImplementedError(f"The tests' Hub has no route {method} {address}.")

    def create(self, asked: dict) -> Response:
        kind, name = f"{asked.get('type', 'model')}s", f"user/{asked['name']}"
        url = f"{self.url}/{name}" if kind == "models" else f"{self.url}/{kind}/{name}"
        if f"{kind}/{name}" in self.repositories:
            return json_response({"error": "You already created this repository", "url": url}, 409)
        repository = self.repositories[f"{kind}/{name}"] = Repository()
        repository.commit({})
        return json_response({"name": name, "url": url})

    def info(self, key: str, revision: str) -> Response:
        files, sha = self.files(key, revision), self._repository(key).resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        name = key.partition("/")[2]
        return json_response({"id": name, "sha": sha, "private": False, "tags": [], "siblings": siblings})

    def tree(self, key: str, revision: str, folder: str, recursive: bool) -> Response:
        files = self.files(key, revision)
        below = [path for path in files if not folder or path.startswith(f"{folder}/")]
        if folder and not below:
            raise HubError(404, "EntryNotFound")
        entries = {path: {"type": "file", "size": len(files[path]), "oid": git_hash(files[path])} for path in below}
        for parent in {str(parent) for path in below for parent in PurePosixPath(path).parents} - {".", folder}:
            entries[parent] = {"type": "directory", "size": 0, "oid": git_hash(parent.encode())}
        listed = [{"path": path} | entry for path, entry in sorted(entries.items())]
        here = [entry for entry in listed if str(PurePosixPath(entry["path"]).parent) == (folder or ".")]
        return json_response(listed if recursive else here)

    def file(self, key: str, revision: str, path: str) -> Response:
        files, oid = self.files(key, revision), self._repository(key).resolve(revision)
        headers = {"X-Repo-Commit": oid}
        if path not in files:
            raise HubError(404, "EntryNotFound", **headers)
        return Response(files[path], headers=headers | {"ETag": f'"{git_hash(files[path])}"'})

    def commit(self, key: str, operations: list[dict]) -> Response:
        if unknown := {operation["key"] for operation in operations} - {"header", "file"}:
            raise NotImplementedError(f"The tests' Hub knows no commit operation {unknown}.")
        added = [operation["value"] for operation in operations if operation["key"] == "file"]
        files = self.files(key) | {file["path"]: base64.b64decode(file["content"]) for file in added}
        oid = self._repository(key).commit(files)
        return json_response({"commitOid": oid, "commitUrl": f"{self.url}/{key.removeprefix('models/')}/commit/{oid}"})


class Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def respond(self) -> None:
        method = self.command.replace("HEAD", "GET")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.hub.lock:
            try:
                if method == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise HubError(401, "InvalidToken")
                response = self.hub.answer(method, self.path, body)
            except HubError as error:
                response = Response(b"{}", error.status, error.headers)
            except Exception:
                # 501 and not 500: the client would repeat the request for half a minute.
                self.hub.failures.append(f"{self.command} {self.path}\n{traceback.format_exc()}")
                response = Response(b"{}", 501)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and response.status == 200:
            first, last = int(asked[1]), int(asked[2])
            response.headers["Content-Range"] = f"bytes {first}-{last}/{len(response.body)}"
            response.status, response.body = 206, response.body[first : last + 1]
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = respond

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def json_response(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value).encode(), status, {"Content-Type": "application/json"})


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def validate_card(text: str) -> Response:
    """The Hub refuses a card whose metadata is no YAML mapping."""
    try:
        metadata = yaml.safe_load(text.removeprefix("---\n").partition("\n---\n")[0])
        errors = [] if isinstance(metadata, dict) else [{"message": "the metadata is no mapping"}]
    except yaml.YAMLError as error:
        errors = [{"message": str(error)}]
    return json_response({"errors": errors, "warnings": []}, 400 if errors else 200)

"""A Hub of the tests' own: the routes that the real `huggingface_hub` client uses to push and to load, over HTTP.

Two listeners on 127.0.0.1 with free ports stand for the Hub and for the store of large files. As on the real one,
large files (Git LFS) are uploaded to the store and downloaded from it by a redirect, without the token; all else is
answered by the Hub. Xet must be off in the client (`HF_HUB_DISABLE_XET=1`).

Not served, and refused by name: pull requests, spaces, search, discussions, last commits of tree entries (`expand`).
"""

import base64
import hashlib
import json
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest
from hub_http import Listener, Request, Response, error_response, file_response, json_response
from hub_repositories import File, HubError, Repository, card_metadata

USER = "user"
TOKEN = "hf_token_of_the_tests"


class HubServer:
    """A running Hub with one user; a context manager that stops it.

    Args:
        home: folder for the clients' `HF_HOME` (cache, stored token, dynamic modules); made when first used.

    Attributes:
        url: the Hub's address, for `HF_ENDPOINT` or `HfApi(endpoint=...)`.
        user: the user's name: repositories are `f"{user}/..."`.
        token: the user's token, needed for every write and to read private repositories.
        requests: all requests so far, e.g. `"GET /user/model/resolve/main/config.json"`, or `"GET /<SHA-256>"` of a
            large file.
        failures: tracebacks of requests that the server itself failed to answer.
        page_size: entries in one page of a tree listing.
    """

    def __init__(self, home: Path):
        self.home, self.user, self.token, self.page_size = home, USER, TOKEN, 1000
        self.requests: list[str] = []
        self.failures: list[str] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}  # by SHA-256
        self._lock = threading.Lock()
        self._running = True
        self._hub = Listener(lambda request: self._respond(request, self._route))
        self._store = Listener(lambda request: self._respond(request, self._stored_file))
        self.url = self._hub.url

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuses connections from now on, as a machine without network sees the Hub. Stopping twice is fine.

        Configs and models then load from the cache at once. Tokenizers and processors list the repository's files,
        which the client tries for 23 seconds before it gives up: spare it that with `HF_HUB_OFFLINE=1` or
        `local_files_only=True`.
        """
        if self._running:
            self._running = False
            self._hub.close()
            self._store.close()

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of a subprocess that uses this Hub, with a cache that only these subprocesses share.

        Another `HF_HOME` gives a machine that never saw the Hub: `hub.environment | {"HF_HOME": str(folder)}`.
        """
        # Caches and offline switches of the caller must not leak into the subprocess.
        own = ("HF_", "HUGGING", "TRANSFORMERS_")
        outer = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        no_proxy = ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY", "")]))
        return outer | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": self.token,
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }

    def _respond(self, request: Request, answer: Callable[[Request], Response]) -> Response:
        with self._lock:
            self.requests.append(f"{request.method} {unquote(request.path)}")
            try:
                return answer(request)
            except HubError as error:
                return error_response(error)
            except Exception:
                # 501 and not 500: the client would try a 500 again for half a minute.
                self.failures.append(f"{self.requests[-1]}\n{traceback.format_exc()}")
                return error_response(HubError(501, "The tests' Hub failed: see `HubServer.failures`."))

    # The store of large files

    def _stored_file(self, request: Request) -> Response:
        if "authorization" in request.headers:  # a store's signed URL refuses it; and the token must not leave the Hub
            raise HubError(400, "Only one authentication mechanism is allowed: the URL's own.")
        sha256 = request.path.strip("/")
        if request.method == "PUT":
            if hashlib.sha256(request.body).hexdigest() != sha256:
                raise HubError(400, f"The content uploaded does not have the SHA-256 {sha256}.")
            self.large_files[sha256] = request.body
            return Response()
        return file_response(self.large_files[sha256], {"ETag": f'"{sha256}"'}, request.headers.get("range"))

    # The Hub

    def _route(self, request: Request) -> Response:
        authorization = request.headers.get("authorization")
        if authorization not in (None, f"Bearer {self.token}"):
            raise HubError(401, "Invalid credentials in Authorization header")
        for method, pattern, needs_token, answer in ROUTES:
            if method == request.method.replace("HEAD", "GET") and (match := re.fullmatch(pattern, request.path)):
                if needs_token and authorization is None:
                    raise HubError(401, "Invalid username or password.")
                route = {name: unquote(value) for name, value in match.groupdict(default="").items()}
                return answer(self, replace(request, route=route))
        raise HubError(404, f"The tests' Hub has no route {request.method} {request.path}.")

    def _repository(self, request: Request) -> Repository:
        kind, repo_id = request.route["kind"].strip("/") or "models", request.route["id"]
        repository = self.repositories.get((kind, repo_id))
        if repository is None or (repository.private and "authorization" not in request.headers):
            raise HubError(404, f"Repository not found: {kind}/{repo_id}.", "RepoNotFound")
        if request.flag("create_pr"):
            raise HubError(400, "The tests' Hub has no pull requests.")
        return repository

    def _page(self, repository: Repository) -> str:
        """The address of a repository's page, from which the client parses type and name."""
        prefix = "" if repository.kind == "models" else f"{repository.kind}/"
        return f"{self.url}/{prefix}{repository.id}"

    def whoami(self, request: Request) -> Response:
        token = {"displayName": "tests", "role": "write"}
        user = {"type": "user", "id": self.user, "name": self.user, "fullname": "Test User", "orgs": []}
        return json_response(user | {"auth": {"type": "access_token", "accessToken": token}})

    def validate_yaml(self, request: Request) -> Response:
        try:
            metadata = card_metadata(json.loads(request.body)["content"])
        except ValueError as error:
            return json_response({"errors": [{"message": str(error)}], "warnings": []}, status=400)
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return json_response({"errors": [], "warnings": warnings})

    def create_repository(self, request: Request) -> Response:
        asked = json.loads(request.body)
        kind, owner = asked.get("type", "model") + "s", asked["organization"] or self.user
        repo_id = f"{owner}/{asked['name']}"
        if kind not in ("models", "datasets"):
            raise HubError(400, f"The tests' Hub has models and datasets, no {kind}.")
        if owner != self.user:
            raise HubError(403, f"{self.user} may not create a repository under the namespace {owner}.")
        if present := self.repositories.get((kind, repo_id)):  # the client reads the address from this refusal too
            return json_response({"error": "You already created this repository", "url": self._page(present)}, 409)
        repository = Repository(kind, repo_id, private=asked.get("visibility") == "private")
        self.repositories[kind, repo_id] = repository
        return json_response({"id": repo_id, "name": repo_id, "url": self._page(repository)})

    def delete_repository(self, request: Request) -> Response:
        asked = json.loads(request.body)
        key = (asked.get("type", "model") + "s", f"{asked['organization'] or self.user}/{asked['name']}")
        if self.repositories.pop(key, None) is None:
            raise HubError(404, f"Repository not found: {'/'.join(key)}.", "RepoNotFound")
        return json_response({})

    def repository_info(self, request: Request) -> Response:
        # `expand`, a list of fields wanted, is left aside: the client takes a field it did not ask for as well.
        return json_response(
            self._repository(request).info(request.route["revision"] or "main", request.flag("blobs"))
        )

    def refs(self, request: Request) -> Response:
        repository = self._repository(request)

        def listed(references: dict[str, str], folder: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid} for name, oid in references.items()
            ]

        branches, tags = listed(repository.branches, "heads"), listed(repository.tags, "tags")
        return json_response({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def commits(self, request: Request) -> Response:
        history = self._repository(request).history(request.route["revision"])
        authors = [{"user": self.user}]
        return json_response(
            [
                {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
                | {"authors": authors}
                for commit in history
            ]
        )

    def tree(self, request: Request) -> Response:
        if request.flag("expand"):
            raise HubError(400, "The tests' Hub has no `expand`.")
        commit = self._repository(request).revision(request.route["revision"])
        entries = commit.listing(request.route["path"].strip("/"), request.flag("recursive"))
        start = int(request.query.get("cursor", 0))
        end = start + self.page_size
        headers = {"X-Repo-Commit": commit.oid}
        if end < len(entries):
            query = f"recursive={request.flag('recursive')}&cursor={end}"
            headers["Link"] = f'<{self.url}{request.path}?{query}>; rel="next"'
        return json_response(entries[start:end], headers=headers)

    def paths_info(self, request: Request) -> Response:
        form = parse_qs(request.body.decode())
        if form.get("expand", ["false"]) != ["false"]:
            raise HubError(400, "The tests' Hub has no `expand`.")
        commit = self._repository(request).revision(request.route["revision"])
        return json_response(list(commit.paths_info(path.strip("/") for path in form.get("paths", []))))

    def preupload(self, request: Request) -> Response:
        repository, branch = self._repository(request), request.route["revision"]
        present = repository.branch(branch).files
        answers = []
        for asked in json.loads(request.body)["files"]:
            path, sample = asked["path"], base64.b64decode(asked["sample"])
            answer = {"path": path, "uploadMode": repository.upload_mode(branch, path, asked["size"], sample)}
            # The client compares this with its own file's hash and leaves unchanged files out of the commit.
            oid = {"oid": present[path].etag} if path in present else {}
            answers.append(answer | {"shouldIgnore": False} | oid)
        return json_response({"files": answers})

    def large_file_batch(self, request: Request) -> Response:
        self._repository(request)
        verify = f"{self.url}{request.path.removesuffix('batch')}verify"
        objects = []
        for asked in json.loads(request.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.large_files:
                answer["actions"] = {
                    "upload": {"href": f"{self._store.url}/{asked['oid']}", "header": {}},
                    "verify": {"href": verify, "header": {}},
                }
            objects.append(answer)
        return json_response({"transfer": "basic", "objects": objects})

    def large_file_verify(self, request: Request) -> Response:
        self._repository(request)
        asked = json.loads(request.body)
        if len(self.large_files.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(422, f"The large file {asked['oid']} was not uploaded whole.")
        return json_response({})

    def commit(self, request: Request) -> Response:
        repository = self._repository(request)
        added, deleted, deleted_folders, header = {}, [], [], {}
        for line in request.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                added[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.large_files:
                    raise HubError(400, f"The large file {value['path']} ({value['oid']}) was not uploaded.")
                added[value["path"]] = File(self.large_files[value["oid"]], lfs=True)
            elif key == "deletedFile":
                deleted.append(value["path"])
            elif key == "deletedFolder":
                deleted_folders.append(value["path"])
            else:
                raise HubError(400, f"The tests' Hub knows no commit operation {key}.")
        made = repository.push(request.route["revision"], header, added, deleted, deleted_folders)
        url = f"{self._page(repository)}/commit/{made.oid}"
        return json_response({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})

    def create_branch(self, request: Request) -> Response:
        repository, name = self._repository(request), request.route["revision"]
        if name in repository.branches:
            raise HubError(409, f"The branch {name} exists already.")
        start = json.loads(request.body).get("startingPoint", "main")
        repository.branches[name] = repository.revision(start).oid
        return json_response({})

    def delete_branch(self, request: Request) -> Response:
        repository, name = self._repository(request), request.route["revision"]
        if name == "main":
            raise HubError(403, "The branch main cannot be deleted.")
        if repository.branches.pop(name, None) is None:
            raise HubError(404, f"{repository.id} has no branch {name}.", "RevisionNotFound")
        return json_response({})

    def create_tag(self, request: Request) -> Response:
        repository, name = self._repository(request), json.loads(request.body)["tag"]
        if name in repository.tags:
            raise HubError(409, f"The tag {name} exists already.")
        repository.tags[name] = repository.revision(request.route["revision"]).oid
        return json_response({})

    def delete_tag(self, request: Request) -> Response:
        repository, name = self._repository(request), request.route["revision"]
        if repository.tags.pop(name, None) is None:
            raise HubError(404, f"{repository.id} has no tag {name}.", "RevisionNotFound")
        return json_response({})

    def resolve(self, request: Request) -> Response:
        commit = self._repository(request).revision(request.route["revision"])
        file = commit.file(request.route["path"])
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"'}
        if not file.lfs:
            return file_response(file.content, headers, request.headers.get("range"))
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        return Response(b"", 302, {**headers, "Location": f"{self._store.url}/{file.sha256}"})


REPOSITORY = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+(?:/[^/]+)?)"
PAGE = r"/(?P<kind>datasets/)?(?P<id>[^/]+(?:/[^/]+)?)"
REVISION = r"(?P<revision>[^/]+)"
# Method, path, whether a token is needed, answer. A repository's own page comes last: `[^/]+` matches a lot.
ROUTES: tuple[tuple[str, str, bool, Callable[[HubServer, Request], Response]], ...] = (
    ("GET", r"/api/whoami-v2", True, HubServer.whoami),
    ("POST", r"/api/validate-yaml", False, HubServer.validate_yaml),
    ("POST", r"/api/repos/create", True, HubServer.create_repository),
    ("DELETE", r"/api/repos/delete", True, HubServer.delete_repository),
    ("GET", rf"{REPOSITORY}/revision/{REVISION}", False, HubServer.repository_info),
    ("GET", rf"{REPOSITORY}/refs", False, HubServer.refs),
    ("GET", rf"{REPOSITORY}/commits/{REVISION}", False, HubServer.commits),
    ("GET", rf"{REPOSITORY}/tree/{REVISION}(?P<path>/.*)?", False, HubServer.tree),
    ("POST", rf"{REPOSITORY}/paths-info/{REVISION}", False, HubServer.paths_info),
    ("POST", rf"{REPOSITORY}/preupload/{REVISION}", True, HubServer.preupload),
    ("POST", rf"{REPOSITORY}/commit/{REVISION}", True, HubServer.commit),
    ("POST", rf"{REPOSITORY}/branch/{REVISION}", True, HubServer.create_branch),
    ("DELETE", rf"{REPOSITORY}/branch/{REVISION}", True, HubServer.delete_branch),
    ("POST", rf"{REPOSITORY}/tag/{REVISION}", True, HubServer.create_tag),
    ("DELETE", rf"{REPOSITORY}/tag/{REVISION}", True, HubServer.delete_tag),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", True, HubServer.large_file_batch),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/verify", True, HubServer.large_file_verify),
    ("GET", rf"{PAGE}/resolve/{REVISION}/(?P<path>.+)", False, HubServer.resolve),
    ("GET", rf"{REPOSITORY}(?P<revision>)", False, HubServer.repository_info),
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub of the test's own, empty, with a fresh `HF_HOME` for the subprocesses that get `hub.environment`."""
    with HubServer(tmp_path / "hf_home") as server:
        yield server
    assert not server.failures, "\n".join(server.failures)

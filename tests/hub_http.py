"""HTTP on 127.0.0.1 for the tests' Hub: requests and responses as values, ranges, and a listener that really stops."""

import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hub_repositories import HubError


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # still quoted: a branch `a/b` arrives as `a%2Fb`
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes
    route: dict[str, str] = field(default_factory=dict)  # unquoted parts of the path, by name

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")


@dataclass(frozen=True)
class Response:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})


def error_response(error: HubError) -> Response:
    headers = {"X-Error-Message": error.message, "X-Error-Code": error.code, "X-Repo-Commit": error.commit}
    given = {name: value for name, value in headers.items() if value is not None}
    return json_response({"error": error.message}, error.status, given)


def file_response(content: bytes, headers: dict[str, str], requested_range: str | None) -> Response:
    """`content`, or the one part of it that a `Range` header asks for."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    if requested_range is None:
        return Response(content, headers=headers)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", requested_range)
    if match is None or match[1] == match[2] == "":
        raise HubError(400, f"Range {requested_range!r} is not `bytes=first-last`.")
    if match[1]:
        first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
    else:  # `bytes=-n`: the last n
        first, last = max(len(content) - int(match[2]), 0), len(content) - 1
    if first > last:
        return Response(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
    return Response(
        content[first : last + 1], 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
    )


class Handler(BaseHTTPRequestHandler):
    """Turns one HTTP message into a `Request`, and its listener's `Response` into another."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: together they would wait for the client's ACK
    server: "Listener"

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, url.path, query, headers, self.read_body())
        response = self.server.respond(request)
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, format: str, *args: object) -> None:
        """Silent: `HubServer.requests` keeps what was asked."""


class Listener(ThreadingHTTPServer):
    """A server on a free port of 127.0.0.1 whose `close` also ends connections that clients keep open.

    Args:
        respond: makes the response of a request; called from several threads at a time.
    """

    daemon_threads = True

    def __init__(self, respond: Callable[[Request], Response]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond = respond
        self.connections: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error; those in `respond` are kept by `HubServer.failures`."""

    def close(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # its thread was quicker
                continue

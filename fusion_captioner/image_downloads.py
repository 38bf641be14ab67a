"""Images, and other files, by URL: images are fetched with a deadline and a limit of size; URLs of strangers never
reach this machine's own network.

Needs the standard library only.
"""

import http.client
import ipaddress
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

MAX_DOWNLOAD_BYTES = 64 * 1024**2
DOWNLOAD_DEADLINE = 60.0  # seconds for a whole download
ANSWER_TIMEOUT = 20.0  # seconds without any byte

_CHUNK = 65536
# Characters that a URL may hold as they are; others, spaces among them, are written as %XX
_URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"


def download(url: str, public_only: bool = False, deadline: float = DOWNLOAD_DEADLINE) -> bytes:
    """
    The content behind a URL.

    Args:
        url: http or https; characters outside ASCII and spaces are quoted.
        public_only: for URLs that come from data: refuse every address that is not public (loopback, private,
            link-local, metadata services), in redirects too. The address is checked after its name was resolved, and
            is the one that is connected to; proxies are not used.
        deadline: seconds that the whole download may take.

    Raises:
        FileNotFoundError: the server knows no such page.
        OSError: the server cannot be reached, is not public, or takes longer than the deadline.
        ValueError: the content is larger than `MAX_DOWNLOAD_BYTES`.
    """
    content = bytearray()
    with open_url(url, public_only=public_only, deadline=deadline) as answer:
        for chunk in answer.chunks:
            content += chunk
            if len(content) > MAX_DOWNLOAD_BYTES:
                raise ValueError(
                    f"{url}: more than {MAX_DOWNLOAD_BYTES // 1024**2} MiB; download it and give the file instead"
                )
    return bytes(content)


class Answer(NamedTuple):
    """
    What a server answers.

    Args:
        status: of HTTP, such as 200, or 206 for a part of the content.
        headers: by name, in any case.
        chunks: the content, to be read once; raises OSError where the connection breaks.
    """

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


@contextmanager
def open_url(
    url: str, headers: Mapping[str, str] | None = None, public_only: bool = False, deadline: float | None = None
) -> Iterator[Answer]:
    """
    Ask a server for a URL, and read its answer in chunks.

    Args:
        url, public_only: as in [`download`].
        headers: further headers of the request.
        deadline: seconds that everything may take; None: as long as bytes arrive.

    Raises:
        FileNotFoundError, OSError: as [`download`].
    """
    watch = _Watch(deadline)
    timeout = min(ANSWER_TIMEOUT, deadline or ANSWER_TIMEOUT)
    with watch:
        try:
            # Some servers answer Python's own user agent with "403 Forbidden"
            request = urllib.request.Request(
                _quoted(url), headers={"User-Agent": "fusion-captioner", **(headers or {})}
            )
            response = _opener(watch, public_only).open(request, timeout=timeout)
        except Exception as error:
            raise _explained(url, error, watch, timeout) from error
        with response:
            yield Answer(response.status, response.headers, _chunks(url, response, watch, timeout))


def _chunks(url: str, response: Any, watch: "_Watch", timeout: float) -> Iterator[bytes]:
    try:
        while chunk := response.read1(_CHUNK):
            yield chunk
        if watch.is_over:
            raise TimeoutError
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
    except Exception as error:
        raise _explained(url, error, watch, timeout) from error


def _explained(url: str, error: Exception, watch: "_Watch", timeout: float) -> OSError:
    """What went wrong, for whatever is raised: URLError, http.client.HTTPException, ValueError of a malformed URL,
    ConnectionError, ..."""
    if isinstance(error, urllib.error.HTTPError):
        kind = FileNotFoundError if error.code in (404, 410) else OSError
        return kind(f"{url}: the server answers {error.code} {' '.join(str(error.reason).split())}")
    reason = getattr(error, "reason", error)
    if watch.is_over:
        return OSError(f"{url}: not complete within {watch.deadline:g} s; download it and give the file instead")
    if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
        return OSError(f"{url}: no answer within {timeout:g} s")
    return OSError(f"{url}: cannot be fetched ({' '.join(str(reason).split()) or type(error).__name__})")


class _Watch:
    """Ends the connections of a download when its time is over, wherever it waits: in headers, in redirects, in
    content."""

    def __init__(self, deadline: float | None) -> None:
        self.is_over = False
        self.deadline = deadline
        self._sockets: list[socket.socket] = []
        self._timer = None if deadline is None else threading.Timer(deadline, self._end)

    def __enter__(self) -> "_Watch":
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def add(self, connection: socket.socket) -> None:
        self._sockets.append(connection)
        if self.is_over:
            self._end()

    def _end(self) -> None:
        self.is_over = True
        for connection in self._sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already
                continue


def _quoted(url: str) -> str:
    parts = urllib.parse.urlsplit(url.strip())
    if parts.hostname is None:
        raise ValueError("the URL names no server")
    host = parts.netloc
    if not host.isascii():
        name = parts.hostname.encode("idna").decode("ascii")
        host = name if parts.port is None else f"{name}:{parts.port}"
    rest = (urllib.parse.quote(part, safe=_URL_CHARACTERS) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, *rest, ""))


def _public_addresses(host: str, port: int) -> list[tuple[str, int]]:
    """The addresses of a server.

    Raises:
        OSError: the name is not known, or one of its addresses is not public.
    """
    found = [(str(info[4][0]), port) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address, _ in found:
        if not is_public(address):
            raise OSError(f"{host} is at {address}, which is not a public address")
    return found


def is_public(address: str) -> bool:
    """Whether an IP address, of version 4 or 6, is one of the public internet; what it wraps or tunnels to counts
    too."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and (ip in ipaddress.ip_network("64:ff9b::/96") or ip in ipaddress.ip_network("::/96")):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class _Connection(http.client.HTTPConnection):
    """A connection that the watch knows of, and that may be bound to public addresses."""

    def __init__(self, *arguments, watch: _Watch, public_only: bool, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self._create_connection = partial(_connect, watch, public_only)


class _SecureConnection(http.client.HTTPSConnection):
    """[`_Connection`] over TLS; the certificate is that of the name, whatever address is connected to."""

    def __init__(self, *arguments, watch: _Watch, public_only: bool, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self._create_connection = partial(_connect, watch, public_only)


def _connect(watch: _Watch, public_only: bool, address: tuple[str, int], *arguments, **keywords) -> socket.socket:
    error: OSError = OSError(f"{address[0]} has no address")
    for target in _public_addresses(*address) if public_only else [address]:
        try:
            connection = socket.create_connection(target, *arguments, **keywords)
        except OSError as failure:
            error = failure
            continue
        watch.add(connection)
        return connection
    raise error


class _Handler(urllib.request.HTTPHandler):
    def __init__(self, **settings) -> None:
        super().__init__()
        self.settings = settings

    def http_open(self, request):
        return self.do_open(partial(_Connection, **self.settings), request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, **settings) -> None:
        super().__init__()
        self.settings = settings

    def https_open(self, request):
        return self.do_open(partial(_SecureConnection, **self.settings), request)


def _opener(watch: _Watch, public_only: bool) -> urllib.request.OpenerDirector:
    """HTTP and HTTPS alone: neither FTP nor files, to which a redirect could lead."""
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        _Handler(watch=watch, public_only=public_only),
        _SecureHandler(watch=watch, public_only=public_only),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ]
    if not public_only:
        handlers.append(urllib.request.ProxyHandler())
    for handler in handlers:
        opener.add_handler(handler)
    return opener

"""Images by URL: fetched with a deadline and a limit of size; URLs of strangers never reach this machine's own
network.

Needs the standard library only.
"""

import http.client
import ipaddress
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from functools import partial

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
    watch = _Watch(deadline)
    try:
        # Some servers answer Python's own user agent with "403 Forbidden"
        request = urllib.request.Request(_quoted(url), headers={"User-Agent": "fusion-captioner"})
        with watch, _opener(watch, public_only).open(request, timeout=min(ANSWER_TIMEOUT, deadline)) as response:
            content = bytearray()
            while len(content) <= MAX_DOWNLOAD_BYTES and (chunk := response.read1(_CHUNK)):
                content += chunk
            if watch.is_over:
                raise TimeoutError
            if response.length and len(content) <= MAX_DOWNLOAD_BYTES:
                raise http.client.IncompleteRead(b"", response.length)
    except urllib.error.HTTPError as error:
        kind = FileNotFoundError if error.code in (404, 410) else OSError
        raise kind(f"{url}: the server answers {error.code} {error.reason}") from error
    except (
        Exception
    ) as error:  # URLError, http.client.HTTPException, ValueError of a malformed URL, ConnectionError, ...
        reason = getattr(error, "reason", error)
        if watch.is_over:
            raise OSError(
                f"{url}: not complete within {deadline:g} s; download it and give the file instead"
            ) from error
        if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
            raise OSError(f"{url}: no answer within {min(ANSWER_TIMEOUT, deadline):g} s") from error
        raise OSError(f"{url}: cannot be fetched ({' '.join(str(reason).split()) or type(error).__name__})") from error
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise ValueError(
            f"{url}: more than {MAX_DOWNLOAD_BYTES // 1024**2} MiB; download it and give the file instead"
        )
    return bytes(content)


class _Watch:
    """Ends the connections of a download when its time is over, wherever it waits: in headers, in redirects, in
    content."""

    def __init__(self, deadline: float) -> None:
        self.is_over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(deadline, self._end)
        self._timer.daemon = True

    def __enter__(self) -> "_Watch":
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
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

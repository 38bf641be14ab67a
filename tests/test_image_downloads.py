"""URLs: quoted, within a deadline, and those of data only from public servers."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from fusion_captioner import image_downloads
from fusion_captioner.image_downloads import download, is_public

SEEN: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """`/slow` sends a byte every tenth of a second; `/to/URL` redirects there; every other path is answered with its
    name."""

    def do_GET(self) -> None:
        SEEN.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", unquote(self.path[4:]))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/slow":
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.wfile.write(self.path.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    SEEN.clear()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def test_a_server_that_drips_is_left_at_the_deadline(server: str):
    start = time.monotonic()
    with pytest.raises(OSError, match=r"/slow: not complete within 0\.5 s"):
        download(f"{server}/slow", deadline=0.5)
    assert time.monotonic() - start < 8


def test_a_server_that_drips_its_headers_is_left_at_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                for character in "HTTP/1.1 200 OK\r\nX-Long: " + "x" * 100:
                    try:
                        connection.send(character.encode())
                    except OSError:
                        return
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        with pytest.raises(OSError, match=r"not complete within 0\.5 s"):
            download(f"http://127.0.0.1:{listener.getsockname()[1]}/", deadline=0.5)


def test_other_characters_are_quoted_and_the_scheme_is_matched_in_any_case(server: str):
    assert download(f"{server}/a b/ä.jpg?q=ß&r=%20") == b"/a%20b/%C3%A4.jpg?q=%C3%9F&r=%20"
    assert download(server.replace("http", "HTTP") + "/x#part") == b"/x"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "2130706433", "127.1"])
def test_data_reach_no_server_of_this_machine(host: str, server: str):
    port = server.rpartition(":")[2]
    with pytest.raises(OSError, match="not a public address"):
        download(f"http://{host}:{port}/x", public_only=True)
    assert not SEEN


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "127.0.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::127.0.0.1", "fd00:ec2::254",
    ],
)  # fmt: skip
def test_private_addresses_are_not_public(address: str):
    assert not is_public(address)


def test_public_addresses_are_public():
    assert is_public("8.8.8.8") and is_public("2606:4700::1111") and is_public("64:ff9b::808:808")


def test_the_checked_address_is_the_one_that_is_connected_to(server: str, monkeypatch: pytest.MonkeyPatch):
    """A name that is public when it is checked and private when it is connected to (DNS rebinding) is asked once."""
    port = int(server.rpartition(":")[2])
    answers = iter([[(2, 1, 6, "", ("93.184.216.34", port))], [(2, 1, 6, "", ("127.0.0.1", port))]])
    targets = []
    monkeypatch.setattr(image_downloads.socket, "getaddrinfo", lambda *a, **k: next(answers))

    def connect(address, *arguments, **keywords):
        targets.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(image_downloads.socket, "create_connection", connect)
    with pytest.raises(OSError, match="refused"):
        download(f"http://photos.example:{port}/x", public_only=True)
    assert targets == [("93.184.216.34", port)]


def test_redirects_are_checked_too(server: str, monkeypatch: pytest.MonkeyPatch):
    assert download(f"{server}/to/{server}/end") == b"/end"
    port = server.rpartition(":")[2]
    monkeypatch.setattr(image_downloads, "is_public", lambda address: address == "127.0.0.1")
    for target in (f"http://127.0.0.2:{port}/inner", f"http://[::1]:{port}/inner"):
        with pytest.raises(OSError, match="not a public address"):
            download(f"{server}/to/{target}", public_only=True)
    assert not [path for path in SEEN if path == "/inner"]
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"):
        with pytest.raises(OSError, match="/to/"):
            download(f"{server}/to/{target}", public_only=True)


def test_proxies_are_not_used_for_data(server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", server)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(OSError, match=r"10\.0\.0\.1, which is not a public address"):
        download("http://10.0.0.1/x", public_only=True)
    assert not SEEN

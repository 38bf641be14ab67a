"""Runs an application on a port: the port is taken first, and requests that run may end when the server stops."""

import errno
import os
import signal
import socket

import uvicorn
from starlette.types import ASGIApp

from fusion_captioner.printing import print_note


def bind(host: str, port: int) -> socket.socket:
    """
    Listen on a port. Clients that connect before the server runs wait.

    Args:
        port: 0 for any that is free.

    Raises:
        ValueError: there is no such port.
        OSError: it is in use or reserved, or the host is no address of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port ({port}) must be 0 (any that is free) to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        return socket.create_server((host, port), family=family, backlog=1024)
    except socket.gaierror as error:
        raise OSError(f"--host ({host}): is no address of this machine ({error.strerror}).") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"--port ({port}): is in use on {host}; end what uses it, or give another --port."
            ) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(
            f"--host ({host}): cannot listen on port {port} ({reason}); give another host or port."
        ) from error


def run_server(app: ASGIApp, listener: socket.socket, about: str, shutdown_seconds: int) -> None:
    """
    Serve until SIGINT or SIGTERM; then no connection is accepted any more, and running requests end.

    Args:
        listener: of [`bind`].
        about: what is served, for the line on stderr with the address.
        shutdown_seconds: that running requests have.
    """
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    print_note(f"{about} on http://{address}:{port} (Ctrl+C ends it)")
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=shutdown_seconds,
    )
    # uvicorn sends itself the signal again when it has ended, which would end the command as a failure
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])
    print_note("the server has ended")

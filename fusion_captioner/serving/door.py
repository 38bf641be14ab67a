"""What a request passes before it reaches its endpoint: bounds of number, size and time; and it is counted."""

import asyncio
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusion_captioner.serving.errors import RequestError, queue_full
from fusion_captioner.serving.metrics import Metrics

# A request that is refused is still read, so that its sender reads the answer instead of a broken connection; so many
# bytes and seconds.
DRAINED_BYTES, DRAIN_SECONDS = 2**28, 10.0
CLIENT_GONE = 499


class ClientGoneError(Exception):
    """The client has closed the connection: nobody waits for an answer."""


class Door:
    """
    ASGI middleware with bounds, so that no client can fill the memory.

    Args:
        app: the application.
        metrics: count requests and time them.
        max_active: requests that may be read, wait or run at the same time; others are answered 429.
        max_body: bytes of a request; others are answered 413.
        body_seconds: that a request may take to arrive; others are answered 408.
        free: paths without work and body, which are always answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        max_active: int,
        max_body: int,
        body_seconds: float = 60.0,
        free: Iterable[str] = (),
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.max_active = max_active
        self.max_body = max_body
        self.body_seconds = body_seconds
        self.free = frozenset(free)
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = CLIENT_GONE
        start = time.perf_counter()

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["path"] in self.free:
                await self.app(scope, receive, counted_send)
            else:
                await self._pass(scope, receive, counted_send)
        except ClientGoneError:
            status = CLIENT_GONE
        finally:
            self.metrics.count_request(scope["path"], status, time.perf_counter() - start)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.active >= self.max_active:
            await _refuse(scope, receive, send, queue_full(f"{self.active} requests are in progress"))
            return
        self.active += 1
        try:
            try:
                async with asyncio.timeout(self.body_seconds):
                    body = await self._read(scope, receive)
            except TimeoutError:
                await RequestError(408, f"the request took longer than {self.body_seconds:g} s to arrive.").response(
                    scope, receive, send
                )
                return
            if body is None:
                await _refuse(scope, receive, send, self._too_large())
                return
            await self.app(scope, _replayed(body, receive), send)
        finally:
            self.active -= 1

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body of a request, or None if it is too large."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self.max_body:
            return None
        body = bytearray()
        async for chunk in _chunks(receive):
            body += chunk
            if len(body) > self.max_body:
                return None
        return bytes(body)

    def _too_large(self) -> RequestError:
        return RequestError(
            413,
            f"the request is larger than {self.max_body / 2**20:g} MiB; make the image smaller.",
            code="request_too_large",
        )


async def _chunks(receive: Receive):
    """
    Raises:
        ClientGoneError: the connection is closed before the end.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def _refuse(scope: Scope, receive: Receive, send: Send, error: RequestError) -> None:
    # who expects "100 Continue" has not begun to send, and reading would ask for it
    if dict(scope["headers"]).get(b"expect", b"").lower() != b"100-continue":
        read = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                async for chunk in _chunks(receive):
                    read += len(chunk)
                    if read > DRAINED_BYTES:
                        break
        except TimeoutError:
            pass
    response = error.response
    response.headers["Connection"] = "close"
    await response(scope, receive, send)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read, and then waits for the client to close the connection."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay

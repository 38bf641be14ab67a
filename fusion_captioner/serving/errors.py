"""Errors of the HTTP server, in the form that OpenAI's API has, so that its clients understand them."""

from typing import Any

from starlette.responses import JSONResponse

_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class RequestError(Exception):
    """
    What is wrong with a request.

    Args:
        status: of HTTP.
        message: one line that names the fix.
        param: the field of the request that is at fault.
        code: OpenAI's name of the fault.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        headers = {"Retry-After": "1"} if self.status == 429 else {}
        return JSONResponse(self.body, self.status, headers=headers)


def queue_full(reason: str) -> RequestError:
    return RequestError(429, f"the server is busy ({reason}); try again in a moment.", code="queue_full")

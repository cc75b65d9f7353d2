"""What is wrong with a request, as OpenAI's clients expect to be told."""

from __future__ import annotations

from typing import Any

from dsv2_compile.errors import Dsv2Error, ResourceError, UsageError

RETRY_AFTER = {"retry-after": "1"}
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ApiError(Exception):
    """``param`` names the field at fault, ``code`` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


def shutting_down() -> ApiError:
    return ApiError(503, "The server is shutting down.", code="shutting_down", headers={"connection": "close"})


def internal() -> ApiError:
    """Its details are for whoever runs the server."""
    return ApiError(500, "The server has made a mistake; its log says which.", code="internal_error")


def refused(e: UsageError | ResourceError, param: str | None) -> ApiError:
    """A request that the engine could never take."""
    return invalid(f"{e.cause} {e.remedy}", param)


def queue_full(e: ResourceError) -> ApiError:
    return ApiError(429, f"{e.cause} {e.remedy}", code="queue_full", headers=RETRY_AFTER)


def failed(e: Dsv2Error) -> ApiError:
    """A request that the engine took and could not finish."""
    return ApiError(500, e.cause, code=type(e).__name__)

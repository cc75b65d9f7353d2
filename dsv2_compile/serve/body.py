"""Reads the body of a request, as far as it may be read."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from dsv2_compile.serve.errors import ApiError

JSON = "application/json"


async def read(request: Request, most: int, timeout: float) -> bytes:
    """At most ``most`` bytes of JSON that come within ``timeout`` seconds; ApiError 415, 413 or 408 otherwise.

    That it must be called JSON also keeps web pages out: browsers send that type to other sites only if these agree.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise ApiError(415, f"The content type is {kind[:100]!r}, not {JSON!r}.")
    too_large = ApiError(413, f"The body is larger than {most} bytes.", code="body_too_large")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for piece in request.stream():
                data += piece
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        message = f"The body did not come within {timeout:g} s."
        raise ApiError(408, message, headers={"connection": "close"}) from None
    return bytes(data)

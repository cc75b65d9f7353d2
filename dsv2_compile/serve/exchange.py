"""One request and its response, as they pass between uvicorn and the application."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import Message, Receive, Send

LEFT = 499
"""Status for a client that went before its response began; nginx's number."""
_LINGER = 10
"""Seconds that the rest of a refused body is read and thrown away."""


class Exchange:
    """Notes the status. A refusal that comes before all of the body is sent while the rest is thrown away: closing
    the connection on data that has not been read would destroy the answer, which many clients read only at the end.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._read = False
        self.status = LEFT

    async def receive(self) -> Message:
        message = await self._receive()
        self._read = self._read or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        early = self.status >= 400 and self.status != 408 and not self._read
        if message["type"] == "http.response.body" and early and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._discard()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _discard(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while not self._read:
                    await self.receive()

"""Writes what a running request says to its client, for as long as both are there."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from dsv2_compile.serve import answers
from dsv2_compile.serve.answers import Words
from dsv2_compile.serve.errors import ApiError
from dsv2_compile.serve.running import ClientGone, Delta, Running

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Reply:
    """An ASGI application for one request. Its sequences leave the batch when it ends, however it ends."""

    def __init__(self, running: Running, words: Words, count: int) -> None:
        self._running, self._words, self._count = running, words, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        try:
            if self._running.asked.stream:
                await self._stream(send)
            else:
                await self._whole(scope, receive, send)
        except ClientGone:
            pass
        finally:
            watch.cancel()
            self._running.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._running.leave()

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        choices = [Delta(i, "", (), None) for i in range(self._count)]
        async for news in self._running.deltas():
            for d in news:
                c = choices[d.index]
                choices[d.index] = replace(d, text=c.text + d.text, token_ids=c.token_ids + d.token_ids)
        await JSONResponse(self._words.whole(choices, self._usage()))(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send(_piece(self._words.opening(self._count)))
        try:
            async for news in self._running.deltas():
                await send(_piece(b"".join(map(self._words.chunk, news))))
        except ApiError as e:  # too late for a status
            await send(_piece(answers.event(e.body()), last=True))
        else:
            await send(_piece(self._words.closing(self._usage()), last=True))

    def _usage(self) -> dict[str, int]:
        return answers.usage(self._running.prompt_tokens, self._running.new_tokens)


def _piece(data: bytes, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": not last}

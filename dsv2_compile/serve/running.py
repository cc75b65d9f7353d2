"""One request while the scheduler works on it, as the event loop sees it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from dsv2_compile.errors import Dsv2Error
from dsv2_compile.runtime.generate import NO_TOKEN, Token
from dsv2_compile.runtime.scheduler import OnToken, Submission
from dsv2_compile.serve.errors import ApiError, failed, internal, shutting_down
from dsv2_compile.serve.fields import Asked
from dsv2_compile.serve.metrics import Metrics
from dsv2_compile.serve.stops import StopStrings


class ClientGone(Exception):
    """Nobody is left to answer."""


@dataclass(frozen=True)
class Delta:
    """What has come of one answer since the last time. ``finish`` is set in its last one: "stop" or "length"."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish: str | None


@dataclass
class _Sequence:
    submission: Submission
    stops: StopStrings
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    made: int = 0
    finish: str | None = None
    told: bool = False
    last: float = 0.0


class Running:
    """Tokens are queued by the scheduler's thread and taken by the event loop's: what a slow client has not taken
    becomes one piece of text, so that it never delays others and never holds more than its own answer."""

    def __init__(
        self,
        asked: Asked,
        prompt_tokens: int,
        metrics: Metrics,
        began: float,
        loop: asyncio.AbstractEventLoop,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """``on_fault`` is told of an error that is none of a request but the end of the scheduler."""
        self.asked, self.prompt_tokens = asked, prompt_tokens
        self._metrics, self._began, self._loop, self._on_fault = metrics, began, loop, on_fault
        self._changed = asyncio.Event()
        self._arrived: deque[tuple[int, Token, float]] = deque()
        self._sequences: list[_Sequence] = []
        self._gone = False

    def on_token(self, index: int) -> OnToken:
        def arrive(token: Token) -> None:
            self._arrived.append((index, token, time.perf_counter()))
            self._loop.call_soon_threadsafe(self._changed.set)

        return arrive

    def add(self, submission: Submission) -> None:
        """The next one; all of them before `deltas`."""
        self._sequences.append(_Sequence(submission, StopStrings(self.asked.stops)))

    @property
    def new_tokens(self) -> int:
        return sum(s.made for s in self._sequences)

    def cancel(self) -> None:
        """Whatever is still in flight leaves the batch."""
        for s in self._sequences:
            s.submission.cancel()

    def leave(self) -> None:
        """The client has gone: `deltas` ends with ClientGone."""
        self._gone = True
        self._changed.set()

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """What there is, as often as there is something, until all answers are whole. ApiError where one fails."""
        while not all(s.told for s in self._sequences):
            await self._changed.wait()
            self._changed.clear()
            if self._gone:
                raise ClientGone
            while self._arrived:
                index, token, when = self._arrived.popleft()
                self._advance(self._sequences[index], token, when)
            if news := [self._tell(i, s) for i, s in enumerate(self._sequences) if self._has_news(s)]:
                yield news

    def _advance(self, s: _Sequence, token: Token, when: float) -> None:
        if s.finish:  # by a stop string: what came after it is not asked for
            return
        if token.id == NO_TOKEN:
            raise self._ended_early(token)
        (self._metrics.next_token if s.made else self._metrics.first_token).add(when - (s.last or self._began))
        s.last = when
        s.made += 1
        s.token_ids.append(token.id)
        s.text += s.stops.push(token.text)
        if s.stops.found:
            s.finish = "stop"
            s.submission.cancel()
        elif token.finish:
            s.finish = token.finish
            s.text += s.stops.end()

    def _ended_early(self, token: Token) -> ApiError:
        if token.finish == "cancelled":  # not by us: we listen no more to those
            return shutting_down()
        if isinstance(token.error, Dsv2Error):
            return failed(token.error)
        assert token.error is not None
        self._on_fault(token.error)
        return internal()

    def _tell(self, index: int, s: _Sequence) -> Delta:
        delta = Delta(index, s.text, tuple(s.token_ids), s.finish)
        s.text, s.token_ids, s.told = "", [], s.finish is not None
        return delta

    def _has_news(self, s: _Sequence) -> bool:
        return not s.told and bool(s.text or s.finish or (self.asked.token_ids and s.token_ids))

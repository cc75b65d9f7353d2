"""Continuous batching: sequences join and leave a running batch between steps. No thread, no clock, no text.

The C++ runtime has the same rules (cpp/src/runtime/batch.h); tests/vectors/batch holds both to them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from dsv2_compile.errors import Dsv2Error, ResourceError
from dsv2_compile.runtime.arguments import Ints
from dsv2_compile.runtime.requests import GREEDY, Event, Finish, Limits, Request, Stats
from dsv2_compile.runtime.sampling import Draw

_ANY = Draw(GREEDY, 0.0)


class Calls(Protocol):
    """What a batch needs of a `Session`."""

    max_batch: int

    def start(self, tokens: ArrayLike, lengths: ArrayLike, draws: Sequence[Draw], slots: ArrayLike) -> Ints: ...
    def resume(self, tokens: ArrayLike, lengths: ArrayLike, draws: Sequence[Draw], slots: ArrayLike) -> Ints: ...
    def step(self, tokens: ArrayLike, draws: Sequence[Draw], slots: ArrayLike) -> Ints: ...
    def free(self, slots: ArrayLike) -> None: ...


@dataclass
class _Sequence:
    number: int
    request: Request
    pages: int
    rng: np.random.Generator
    slot: int = -1
    cached: int = 0
    made: int = 0
    last: int = 0
    take: int = 0  # tokens that the next call adds

    def in_full(self) -> bool:
        """Whether that call gives a token of the answer: none of the prompt is left after it."""
        return self.cached + self.take >= len(self.request.prompt)


Call = Callable[[list[_Sequence], list[Draw], list[int]], Ints]
"""Rows, how the token of each is chosen, their slots -> the tokens."""


class Batch:
    """Requests in one queue, first come first served, over the slots of ``session``.

    ``chunk``: most prompt tokens a step, None for no limit, so that a long prompt does not hold up those that decode.
    A request waits until a slot is free and its pages can be set aside for all that it may come to: what has begun is
    never put off. One that does not fit yet holds up those behind it, so none waits for ever.

    `submit` and `cancel` may come while a call of the session runs, so a lock around this need not be held then.
    """

    def __init__(
        self,
        session: Calls,
        limits: Limits,
        eos: Sequence[int],
        chunk: int | None = None,
        max_waiting: int | None = None,
    ) -> None:
        self._session, self._limits, self._eos = session, limits, frozenset(eos)
        self._chunk, self._max_waiting = chunk, max_waiting
        self._waiting: deque[_Sequence] = deque()
        self._live: dict[int, _Sequence] = {}  # by slot, in the order of admission
        self._cancelled: set[int] = set()
        self._committed = 0
        self._submitted = self._prompt_tokens = self._new_tokens = self._steps = 0
        self._ended: dict[Finish, int] = {"stop": 0, "length": 0, "cancelled": 0, "failed": 0}

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._live)

    def submit(self, number: int, request: Request) -> None:
        """Queue ``request``; ``number`` stands for it from now on. Refused at once: UsageError for what is wrong in
        itself, ResourceError for a full queue and for more pages than there are."""
        self._limits.check(request)
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise ResourceError(
                f"{len(self._waiting)} requests are waiting, no more are taken.", "Try again when some have ended."
            )
        rng = request.sampling.stream(request.stream)
        self._waiting.append(_Sequence(number, request, self._limits.pages_of(request), rng))
        self._submitted += 1

    def cancel(self, number: int) -> None:
        """It leaves with the next step. Nothing happens to one that has ended."""
        self._cancelled.add(number)

    def step(self) -> list[Event]:
        """Cancelled requests leave; those in flight decode; waiting ones are admitted; prompts are computed."""
        events = self._leave()
        computed = self._decode(events)
        self._admit()
        self._steps += self._prefill(events) or computed
        return events

    def stats(self) -> Stats:
        return Stats(
            waiting=len(self._waiting),
            live=len(self._live),
            max_batch=self._session.max_batch,
            pages_committed=self._committed,
            page_count=self._limits.pages.count if self._limits.pages else 0,
            submitted=self._submitted,
            finished=self._ended["stop"] + self._ended["length"],
            cancelled=self._ended["cancelled"],
            failed=self._ended["failed"],
            prompt_tokens=self._prompt_tokens,
            new_tokens=self._new_tokens,
            steps=self._steps,
        )

    def _leave(self) -> list[Event]:
        if not self._cancelled:
            return []
        leaving, self._cancelled = self._cancelled, set()
        found = [s for s in (*self._live.values(), *self._waiting) if s.number in leaving]
        self._waiting = deque(s for s in self._waiting if s.number not in leaving)
        return [self._end(s, Event(s.number, None, "cancelled")) for s in found]

    def _decode(self, events: list[Event]) -> bool:
        rows = sorted((s for s in self._live.values() if s.made), key=lambda s: s.slot)
        for s in rows:
            s.take = 1
        self._run(lambda some, draws, slots: self._session.step([s.last for s in some], draws, slots), rows, events)
        return bool(rows)

    def _admit(self) -> None:
        count = self._limits.pages.count if self._limits.pages else 0
        while self._waiting and len(self._live) < self._session.max_batch:
            if self._committed + self._waiting[0].pages > count:
                return
            s = self._waiting.popleft()
            s.slot = next(slot for slot in range(self._session.max_batch) if slot not in self._live)
            self._live[s.slot] = s
            self._committed += s.pages

    def _prefill(self, events: list[Event]) -> bool:
        rows, room = [], math.inf if self._chunk is None else self._chunk
        for s in self._live.values():
            left = len(s.request.prompt) - s.cached
            if left > 0 and room:
                s.take = int(min(left, room))
                room -= s.take
                rows.append(s)
        fresh, begun = [s for s in rows if not s.cached], [s for s in rows if s.cached]
        self._run(lambda some, draws, slots: self._session.start(*_prompts(some), draws, slots), fresh, events)
        self._run(lambda some, draws, slots: self._session.resume(*_prompts(some), draws, slots), begun, events)
        return bool(rows)

    def _run(self, call: Call, rows: list[_Sequence], events: list[Event]) -> None:
        """Add the next ``take`` tokens of each row. What is chosen amid a prompt means nothing: it takes no random
        number and is no event."""
        if not rows:
            return
        draws = [s.request.sampling.draw(s.rng) if s.in_full() else _ANY for s in rows]
        for s, found in zip(rows, _isolated(call, rows, draws), strict=True):
            if isinstance(found, Dsv2Error):
                events.append(self._end(s, Event(s.number, None, "failed", found)))
                continue
            whole = s.in_full()
            s.cached += s.take
            self._prompt_tokens += 0 if s.made else s.take
            if whole:
                events.append(self._advance(s, found))

    def _advance(self, s: _Sequence, token: int) -> Event:
        s.last = token
        s.made += 1
        self._new_tokens += 1
        if token in self._eos or token in s.request.stop:
            return self._end(s, Event(s.number, token, "stop"))
        if s.made == s.request.max_new_tokens or len(s.request.prompt) + s.made > self._limits.max_tokens:
            return self._end(s, Event(s.number, token, "length"))
        return Event(s.number, token)

    def _end(self, s: _Sequence, event: Event) -> Event:
        assert event.finish is not None
        self._ended[event.finish] += 1
        if self._live.get(s.slot) is s:
            del self._live[s.slot]
            self._committed -= s.pages
            if s.cached:
                self._session.free([s.slot])
        return event


def _isolated(call: Call, rows: list[_Sequence], draws: list[Draw]) -> list[int | Dsv2Error]:
    """The token of each row, or its error: where a call fails, each row is tried alone, with the same draw."""
    try:
        return [*call(rows, draws, [s.slot for s in rows]).tolist()]
    except Dsv2Error as e:
        if len(rows) == 1:
            return [e]
        return [_isolated(call, [row], [draw])[0] for row, draw in zip(rows, draws, strict=True)]


def _prompts(rows: list[_Sequence]) -> tuple[Ints, Ints]:
    """The next tokens of each prompt, padded, and how many they are."""
    lengths = np.array([s.take for s in rows])
    tokens = np.zeros((len(rows), lengths.max()), np.int64)
    for row, s in zip(tokens, rows, strict=True):
        row[: s.take] = s.request.prompt[s.cached : s.cached + s.take]
    return tokens, lengths

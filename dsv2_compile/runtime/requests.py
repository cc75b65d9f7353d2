"""What is asked of a batch, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from dsv2_compile.errors import ResourceError, UsageError
from dsv2_compile.runtime import arguments
from dsv2_compile.runtime.loaders import Pages
from dsv2_compile.runtime.sampling import Sampling

if TYPE_CHECKING:
    from dsv2_compile.runtime.engine import Engine

Finish = Literal["stop", "length", "cancelled", "failed"]

GREEDY = Sampling()


@dataclass(frozen=True)
class Request:
    """``stream``: which of the seed's streams of random numbers is this one's. ``stop``: ids that end it, as those of
    the model do."""

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stream: int = 0
    stop: frozenset[int] = frozenset()


class Event(NamedTuple):
    """The next token of a request, or that it has ended without one: "cancelled", or "failed" with its error.

    ``finish`` is set on its last event: "stop" for an end-of-sequence or a stop token, "length" for max_new_tokens or
    no room for more.
    """

    request: int
    token: int | None
    finish: Finish | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class Limits:
    """What a sequence may be: positions of its slot, and pages of the cache where that has any."""

    vocab_size: int
    max_tokens: int
    pages: Pages | None = None

    @classmethod
    def of(cls, engine: Engine, max_tokens: int) -> Limits:
        return cls(engine.config.vocab_size, max_tokens, engine.pages)

    def check(self, request: Request) -> None:
        """UsageError, or ResourceError for one that the cache could never hold."""
        if request.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {request.max_new_tokens}.", "Ask for at least one token.")
        if request.stream < 0:
            raise UsageError(f"stream is {request.stream}.", "Streams of random numbers count from 0.")
        arguments.vocabulary(arguments.integers("prompt", request.prompt, 1), self.vocab_size)
        if len(request.prompt) > self.max_tokens:
            raise UsageError(
                f"A prompt has {len(request.prompt)} tokens, the engine takes {self.max_tokens}.",
                "Shorten the prompt, or rebuild the engine with a larger --max-seq-len.",
            )
        if self.pages and self.pages_of(request) > self.pages.count:
            raise ResourceError(
                f"A request needs {self.pages_of(request)} pages, the KV cache has {self.pages.count} of "
                f"{self.pages.size} tokens.",
                "Shorten the prompt, ask for fewer tokens, or load the engine with a larger cache_tokens.",
            )

    def pages_of(self, request: Request) -> int:
        """Pages for all that ``request`` may come to."""
        if self.pages is None:
            return 0
        return math.ceil(min(len(request.prompt) + request.max_new_tokens, self.max_tokens) / self.pages.size)


@dataclass(frozen=True)
class Stats:
    """``finished`` by "stop" or "length". ``prompt_tokens`` that were computed, ``new_tokens`` that were given out,
    ``steps`` that had something to compute."""

    waiting: int
    live: int
    max_batch: int
    pages_committed: int
    page_count: int
    submitted: int
    finished: int
    cancelled: int
    failed: int
    prompt_tokens: int
    new_tokens: int
    steps: int

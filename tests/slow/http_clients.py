"""Clients of a server of ours, for figures: OpenAI's own, with a clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai


@dataclass(frozen=True)
class Work:
    """One request: a prompt of token ids, and how many tokens are wanted."""

    prompt: tuple[int, ...]
    new_tokens: int


@dataclass
class Timing:
    """Seconds since the request began at which its tokens came, and the tokens."""

    at: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50_ms": float(p50) * 1e3, "p99_ms": float(p99) * 1e3, "samples": len(seconds)}


def figures(timings: Sequence[Timing], wall: float) -> dict[str, Any]:
    """``wall``: seconds from the first request's beginning to the last one's end."""
    made = sum(len(t.tokens) for t in timings)
    return {
        "wall_seconds": wall,
        "requests_per_second": len(timings) / wall,
        "new_tokens_per_second": made / wall,
        "new_tokens": made,
        "time_to_first_token": percentiles([t.at[0] for t in timings]),
        "time_per_output_token": percentiles([b - a for t in timings for a, b in zip(t.at, t.at[1:], strict=False)]),
        "request": percentiles([t.at[-1] for t in timings]),
    }


async def _one(client: openai.AsyncOpenAI, model: str, work: Work) -> Timing:
    found, begin = Timing(), time.perf_counter()
    stream = await client.completions.create(
        model=model,
        prompt=list(work.prompt),
        max_tokens=work.new_tokens,
        temperature=0,
        stream=True,
        extra_body={"return_token_ids": True},
    )
    async for chunk in stream:
        ids = chunk.choices[0].token_ids
        found.at += [time.perf_counter() - begin] * len(ids)
        found.tokens += ids
    return found


async def _all(url: str, model: str, requests: Sequence[Work], clients: int) -> tuple[list[Timing], float]:
    """Each of ``clients`` takes the next request when its last one has been answered."""
    found: dict[int, Timing] = {}
    left = iter(enumerate(requests))
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:

        async def work() -> None:
            for i, request in left:
                found[i] = await _one(client, model, request)

        begin = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        wall = time.perf_counter() - begin
    return [found[i] for i in range(len(requests))], wall


def run(url: str, model: str, requests: Sequence[Work], clients: int) -> tuple[list[Timing], float]:
    return asyncio.run(_all(url, model, requests, clients))

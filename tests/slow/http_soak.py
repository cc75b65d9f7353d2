"""Minutes of clients that come, go, break off and are wrong, and what a server looks like meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openai

SAMPLE_SECONDS = 2.0
WARM_UP = 0.2
"""Share of the time whose samples are left out of the slope: pools and caches fill first."""
_letters = random.Random(0)
WORDS = ["".join(_letters.choices("abcdefgh", k=_letters.randrange(1, 9))) for _ in range(500)]
"""Of all prompts. A tokenizer keeps words that it has seen, up to 10,000 a thread: with ever new ones a soak would
measure how that fills."""
EXPECTED = {
    "whole",
    "stream",
    "stopped",
    "several",
    "left",
    "slow",
    "never read",
    "cut off",
    "400",
    "404",
    "413",
    "429",
}


def process_state(pid: int) -> dict[str, int]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"rss_bytes": int(status["VmRSS"].split()[0]) * 1024, "threads": int(status["Threads"]), "files": files}


async def soak(host: str, port: int, model: str, pid: int, seconds: float, clients: int) -> dict[str, Any]:
    """Every request ends as it should, or is counted as an error, by its words."""
    begin = time.monotonic()
    end = begin + seconds
    outcomes: Counter[str] = Counter()
    samples = []
    async with openai.AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key="none", max_retries=0) as client:
        work = [
            asyncio.create_task(_client(client, host, port, model, random.Random(i), end, outcomes))
            for i in range(clients)
        ]
        while time.monotonic() < end:
            samples.append({"seconds": time.monotonic() - begin, **process_state(pid)})
            await asyncio.sleep(SAMPLE_SECONDS)
        await asyncio.gather(*work)
    return {
        "seconds": seconds,
        "clients": clients,
        "outcomes": dict(sorted(outcomes.items())),
        "errors": sum(n for what, n in outcomes.items() if what not in EXPECTED),
        "memory": slope(samples),
        "samples": samples,
    }


def slope(samples: list[dict[str, float]]) -> dict[str, float]:
    """Of resident memory over time, by least squares, after the warm-up."""
    kept = samples[int(len(samples) * WARM_UP) :]
    at, rss = ([s[k] for s in kept] for k in ("seconds", "rss_bytes"))
    per_second = float(np.polyfit(at, rss, 1)[0])
    return {
        "bytes_per_minute": per_second * 60,
        "first_bytes": rss[0],
        "last_bytes": rss[-1],
        "most_bytes": max(rss),
        "most_files": max(s["files"] for s in samples),
        "most_threads": max(s["threads"] for s in samples),
    }


async def _client(
    client: openai.AsyncOpenAI,
    host: str,
    port: int,
    model: str,
    dice: random.Random,
    end: float,
    outcomes: Counter[str],
) -> None:
    while time.monotonic() < end:
        try:
            what = await asyncio.wait_for(_one(client, host, port, model, dice), 120)
        except openai.APIStatusError as e:
            what = str(e.status_code)
        except Exception as e:
            what = f"{type(e).__name__}: {e}"[:200]
        outcomes[what] += 1
        await asyncio.sleep(dice.random() * 0.02)


async def _one(client: openai.AsyncOpenAI, host: str, port: int, model: str, dice: random.Random) -> str:
    """One request of a kind that the dice choose; what became of it."""
    prompt = " ".join(dice.choices(WORDS, k=dice.randrange(1, 12)))
    asked: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": dice.randrange(1, 60)}
    asked |= {"temperature": dice.choice([0, 1]), "seed": dice.randrange(9)}
    kind = dice.randrange(12)
    if kind < 2:
        await client.completions.create(**asked)
        return "whole"
    if kind < 4:
        async for _ in await client.completions.create(**asked, stream=True):
            pass
        return "stream"
    if kind == 4:
        await client.completions.create(**asked, stop=["e", "th"])
        return "stopped"
    if kind == 5:
        await client.completions.create(**asked, n=3)
        return "several"
    if kind < 8:
        stream = await client.completions.create(**asked | {"max_tokens": 500}, stream=True)
        for _ in range(dice.randrange(4)):
            await anext(aiter(stream))
        await stream.close()
        return "left"
    if kind == 8:
        async for _ in await client.completions.create(**asked, stream=True):
            await asyncio.sleep(0.01)
        return "slow"
    if kind == 9:
        await client.completions.create(**asked | dice.choice([{"model": "none"}, {"max_tokens": 0}, {"top_p": 0}]))
        return "a wrong request was taken"
    return await _raw(host, port, asked, dice)


async def _raw(host: str, port: int, asked: dict[str, Any], dice: random.Random) -> str:
    """Asks for much and reads nothing, or breaks off amid the request."""
    data = json.dumps(asked | {"max_tokens": 500, "stream": dice.random() < 0.5}).encode()
    _, writer = await asyncio.open_connection(host, port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    cut = dice.random() < 0.5
    writer.write(head.encode() + b"\r\n\r\n" + (data[: len(data) // 2] if cut else data))
    await writer.drain()
    await asyncio.sleep(dice.random() * 0.2)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return "cut off" if cut else "never read"

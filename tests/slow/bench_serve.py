"""What serving costs and gains, and ten minutes of it. Writes artifacts/bench/serve.json.

    python -m tests.slow.bench_serve [--out FILE] [--scratch DIR] [--engine DIR] [--clients N ...] [--soak MINUTES]

The same random requests, greedy: by the runtime alone, one after the other; then through a server, in a process of its
own, by 1, 4 and 16 clients at once. OpenAI's client measures, on the same cores. The engine is by default DeepSeek-V2-
Lite with 3 layers and 8 routed experts, 2.9 GB of weights. The soak is on a tiny model, whose steps are short.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dsv2_compile.runtime import Engine
from tests.serving import Served, served
from tests.slow.figures import answer, arguments, cli, note, save
from tests.slow.http_clients import Timing, Work, figures, run
from tests.slow.http_soak import soak

BATCH = 16
SEED = 1
STOP_SECONDS = 60
"""A server that has nothing to do may take to end."""


def built(name: str, folder: Path) -> Path:
    """``name``: a preset, and what to change of it after a colon: lite:layers=3,experts=8."""
    preset, _, changes = name.partition(":")
    words = [word for change in filter(None, changes.split(",")) for word in ("--set", change)]
    checkpoint, engine = folder / f"{preset}-checkpoint", folder / f"{preset}-engine"
    cli("synth", preset, "-o", checkpoint, *words)
    limits = ("--max-batch-size", BATCH, "--max-seq-len", 2048)
    made = answer(cli("build", checkpoint, "--cpu", "-o", engine, *limits, "--json"))
    note(f"{name}: {made['bytes'] / 1e9:.2f} GB, {made['engine_status']}")
    return engine


def requests_of(vocab_size: int, args: argparse.Namespace) -> list[Work]:
    rng = np.random.default_rng(SEED)
    lengths = rng.integers(args.prompt // 2, args.prompt + args.prompt // 2, args.requests)
    return [Work(tuple(rng.integers(0, vocab_size, n).tolist()), args.new_tokens) for n in lengths]


def one_by_one(engine: Engine, requests: list[Work]) -> tuple[list[Timing], float]:
    found = []
    begin = time.perf_counter()
    for work in requests:
        timing, start = Timing(), time.perf_counter()
        for token in engine.generate([work.prompt], work.new_tokens):
            timing.at.append(time.perf_counter() - start)
            timing.tokens.append(token.id)
        found.append(timing)
    return found, time.perf_counter() - begin


def levels(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    with Engine.load(folder, args.threads) as engine:
        requests = requests_of(engine.config.vocab_size, args)
        weights = sum(f.bytes for name, f in engine.manifest.files.items() if name.startswith("weights/"))
        one_by_one(engine, requests[:2])
        timings, wall = one_by_one(engine, requests)
    alone = [t.tokens for t in timings]
    found = {"one_by_one_without_a_server": figures(timings, wall)}
    note(f"one by one: {found['one_by_one_without_a_server']['new_tokens_per_second']:.1f} tokens/s")
    with served(folder, "--name", "m", *thread_options(args)) as server:
        run(f"{server.url}/v1", "m", requests[:2], 1)
        for clients in args.clients:
            timings, wall = run(f"{server.url}/v1", "m", requests, clients)
            same = sum(t.tokens == a for t, a in zip(timings, alone, strict=True))
            name = f"{clients}_clients" if clients > 1 else "1_client"
            found[name] = figures(timings, wall) | {"answers_the_same_as_alone": same}
            note(f"{clients} clients: {found[name]['new_tokens_per_second']:.1f} tokens/s, {same} answers the same")
        state = ended(server)
    return {
        "engine": {"weight_bytes": weights, "max_batch": BATCH},
        "requests": {"count": len(requests), "prompt_tokens": sum(len(w.prompt) for w in requests)},
        "levels": found,
        "server": state,
    }


def thread_options(args: argparse.Namespace) -> list[Any]:
    return [] if args.threads is None else ["--threads", args.threads]


def ended(server: Served) -> dict[str, Any]:
    """What the server says of itself when nothing runs, and how it ends."""
    names = ("submitted", "finished", "cancelled", "failed")
    counts = {n: int(server.metric(f"requests_{n}_total")) for n in names}
    left = {n: int(server.metric(f"requests_{n}")) for n in ("live", "waiting")}
    server.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(STOP_SECONDS)
    return {**counts, **left, "exit": server.process.poll()}


@contextlib.contextmanager
def undisturbed(server: Served) -> Iterator[None]:
    """The clients have gone: what they left is given the time to leave."""
    yield
    end = time.monotonic() + STOP_SECONDS
    while server.metric("requests_live") + server.metric("requests_waiting") and time.monotonic() < end:
        time.sleep(0.1)


def soaked(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    options = ("--name", "m", "--max-waiting", 32, "--client-timeout", 5)
    with served(folder, *options, *thread_options(args)) as server:
        with undisturbed(server):
            found = asyncio.run(
                soak("127.0.0.1", server.port, "m", server.process.pid, args.soak * 60, args.soak_clients)
            )
        found["server"] = ended(server)
    note(f"soak: {found['errors']} errors, {found['memory']['bytes_per_minute'] / 1e3:.0f} kB a minute")
    return found


def main() -> None:
    parser = arguments("serve", __doc__)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--engine", default="lite:layers=3,experts=8", help="what to build")
    parser.add_argument("--soak-engine", default="tiny", help="what to build for the soak")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt, half as many to half as many more")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--soak", type=float, default=10.0, metavar="MINUTES")
    parser.add_argument("--soak-clients", type=int, default=24)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        found = levels(built(args.engine, Path(scratch) / "levels"), args)
        soak_engine = built(args.soak_engine, Path(scratch) / "soak")
        found["soak"] = {"engine": args.soak_engine, **soaked(soak_engine, args)}
    save(args.out, **found)


if __name__ == "__main__":
    main()

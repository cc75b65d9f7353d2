"""An engine, through the runtime a program would embed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsv2_compile.bench.machine import Machine, machine, own_memory
from dsv2_compile.bench.measure import Ints, Measurements, Workload, filling, measure
from dsv2_compile.config import ModelConfig
from dsv2_compile.progress import Progress
from dsv2_compile.runtime import Draw, Engine, Sampling, Session

COSTS = "programs.json"
_CACHE_ITEM = 4  # bytes of a cached value: float32
_GREEDY = Draw(Sampling(), 0.0)


@dataclass(frozen=True)
class Traffic:
    """Of a decode step: the bytes it must move by the engine's own cost table, and their share of memory bandwidth.

    Says something of models that do not fit in the last-level cache.
    """

    context: int
    bytes_per_step: int
    gbps: float
    share_of_bandwidth: float


@dataclass(frozen=True)
class BenchReport:
    """``traffic`` is empty where the engine's cost table does not hold for the batch.

    ``peak_rss_bytes`` counts weights mapped from files, ``private_bytes``, after the run, does not.
    """

    subject: str
    path: str
    machine: Machine
    workload: Workload
    load_seconds: float
    peak_rss_bytes: int
    private_bytes: int
    measurements: Measurements
    traffic: tuple[Traffic, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench_engine(
    path: str | Path,
    prompt_lengths: Sequence[int] = (128,),
    contexts: Sequence[int] = (128,),
    batch: int = 1,
    decode_steps: int = 32,
    threads: int | None = None,
    capacity: int | None = None,
    repeats: int = 3,
    seconds: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> BenchReport:
    """Load the engine at ``path`` and measure it, see `Workload`; threads None: all cores we may use.

    One engine per process gives the cleanest figures: ONNX Runtime's threads spin. Raises what
    `Engine.load` raises, and UsageError for a workload beyond the engine's limits.
    """
    cores = threads or len(os.sched_getaffinity(0))
    work = Workload(tuple(prompt_lengths), tuple(contexts), batch, decode_steps, repeats, cores, capacity, seconds)
    progress("load", 0, 0)
    start = time.perf_counter()
    engine = Engine.load(path, threads=cores)
    loaded = time.perf_counter() - start
    with engine, engine.session(batch, work.positions) as session:
        measurements = measure(EngineSubject(engine.config, session), work, progress)
        memory = own_memory()
    return BenchReport(
        "engine",
        Path(path).name,
        machine(),
        work,
        loaded,
        memory["peak_rss"],
        memory["private"],
        measurements,
        traffic(Path(path), engine, measurements, work),
    )


class EngineSubject:
    """A session as a `measure.Subject`: tokens are chosen where the engine chooses them, as in `generate`."""

    def __init__(self, config: ModelConfig, session: Session) -> None:
        self.vocab_size = config.vocab_size
        self._row = (config.num_hidden_layers, config.cache_dim)
        self._session = session

    def prefill(self, tokens: Ints) -> Ints:
        return self._session.start(tokens, np.full(len(tokens), tokens.shape[1]), [_GREEDY] * len(tokens))

    def at(self, cached: int) -> None:
        layers, width = self._row
        batch = self._session.max_batch
        self._session.restore(filling((layers, batch, cached, width)), np.full(batch, cached))

    def decode(self, tokens: Ints) -> Ints:
        return self._session.step(tokens, [_GREEDY] * len(tokens))


def traffic(root: Path, engine: Engine, measurements: Measurements, work: Workload) -> tuple[Traffic, ...]:
    """Of each decode point. The cost table holds at one context; a further cached position is one row per layer."""
    file = root / COSTS
    program = engine.manifest.programs.get("decode")
    if not file.is_file() or program is None or program.mla_form == "expanded":
        return ()
    decode = json.loads(file.read_bytes())["decode"]
    if (decode["sizes"]["batch"], decode["sizes"]["tokens"]) != (work.batch, 1):
        return ()
    table = sum(op["bytes"] for op in decode["operators"])
    row = engine.config.num_hidden_layers * engine.config.cache_dim * _CACHE_ITEM
    points = []
    for point in measurements.decode:
        middle = point.context + work.decode_steps // 2
        moved = table + row * work.batch * (middle - decode["sizes"]["context"])
        gbps = moved / point.ms.median / 1e6
        points.append(Traffic(point.context, moved, gbps, gbps / point.bandwidth_gbps))
    return tuple(points)

"""A GPU that is none, for tests of the judge that measures: a worker of `processes` whose times are made up and which
crashes, hangs, faults, computes wrongly and drifts as it is told. Nothing is computed and nothing is measured, and
every name of it begins with SIMULATED."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.autotune.log import TrialLog
from dsv2_compile.autotune.measure import judge as judging
from dsv2_compile.autotune.measure.jobs import Found, Job, Step, Subject
from dsv2_compile.autotune.measure.judge import MeasuredJudge
from dsv2_compile.autotune.measure.pool import MeasuringPool
from dsv2_compile.autotune.measure.worker import answering
from dsv2_compile.autotune.predict import bound
from dsv2_compile.autotune.search import Pairs
from dsv2_compile.autotune.sweep import Effort, Sweep
from dsv2_compile.autotune.tasks import Task
from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.compile import Compiled
from dsv2_compile.backends.cuda.disassembly import Usage
from dsv2_compile.backends.cuda.static_checks import Report
from dsv2_compile.kernels.gpu.aot import Cubin
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call
from dsv2_compile.processes import Failure
from dsv2_compile.runtime.native.driver import OUT_OF_MEMORY, DriverError
from dsv2_compile.targets import Target, target

DEVICE = "SIMULATED device of the tests"
REFERENCES = {"copy": 100.0, "product": 200.0}
"""Microseconds."""

MISHAPS = ("crash", "hang", "fault", "raise", "late fault", "leak", "large")
"""A process that ends, one that does not answer, a device that is lost, an error that passes, a device that is lost
with the next job, one that leaves no memory for the next job, one that has too little for the job itself."""
ERRORS = ("wrong", "wrong elsewhere", "sometimes wrong", "other bits")
"""Of answers: always, at one held-out shape, for one seed of each, in one run of many."""
TIMES = ("impossible", "nothing", "negative", "not a number")
ENDLESS = "endless"
"""Every fourth of its times."""


@dataclass(frozen=True)
class Simulation:
    """``planted``: kind of mishap by configuration. ``noise``: standard deviation of a time, relative. ``level``: of
    the times of a process, which differ as much from one process to the next. ``times``: microseconds by
    configuration, others are made up. ``load``: file; while it is there, something else runs on the device and all
    takes so many times as long as it says. ``pause``: seconds that every job takes. ``gone``: file; while it is there,
    the device cannot be opened."""

    target: str
    planted: Mapping[Pairs, str] = field(default_factory=dict)
    noise: float = 0.005
    level: float = 0.0
    times: Mapping[Pairs, float] = field(default_factory=dict)
    load: str = ""
    pause: float = 0.0
    gone: str = ""


def start(setup: Simulation) -> Callable[[Job], tuple[Found | Failure, bool]]:
    if setup.gone and os.path.exists(setup.gone):
        raise OSError("CUDA_ERROR_DEVICE_UNAVAILABLE: Xid 79, as planted")
    bench = SimulatedBench(setup)
    answer = answering(bench, target(setup.target))

    def paused(job: Job) -> tuple[Found | Failure, bool]:
        time.sleep(setup.pause)
        found, last = answer(job)
        return replace(found, facts={**found.facts, "pid": os.getpid()}) if isinstance(found, Found) else found, last

    return paused


class SimulatedBench:
    """A `Bench`."""

    def __init__(self, setup: Simulation) -> None:
        self._setup, self._target = setup, target(setup.target)
        self._rng = random.Random(os.urandom(8))
        self._level = 1 + abs(self._rng.gauss(0, setup.level))
        self._lost, self._losing, self._full = False, False, False

    def _kind(self, subject: Subject) -> str:
        return self._setup.planted.get(subject.steps[0].config_pairs, "")

    def check(self, subject: Subject, seed: int) -> str:
        kind = self._kind(subject)
        self._lost, self._losing = self._losing, kind == "late fault"
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "hang":
            time.sleep(3600)
        if kind == "raise":
            raise ValueError("as planted")
        if self._full or kind == "large":
            raise DriverError(OUT_OF_MEMORY, "as planted")
        self._full = kind == "leak"
        self._lost |= kind == "fault"
        return "as planted" if kind == "wrong" else ""

    def held_out(self, subject: Subject, shape: int, seed: int) -> str:
        kind = self._kind(subject)
        elsewhere = kind == "wrong elsewhere" and shape == 5
        sometimes = kind == "sometimes wrong" and seed == 3
        return "as planted" if elsewhere or sometimes else ""

    def race(self, subject: Subject, repeats: int, seconds: float) -> tuple[str, int]:
        if self._kind(subject) == "other bits" and repeats >= 700:
            return "out is not the same in run 700", 700
        return "", repeats

    def times(self, subject: Subject, repeats: int) -> list[float]:
        kind, mean = self._kind(subject), microseconds(subject, self._target, self._setup.times)
        odd = {"impossible": 0.4 * bound(subject.call, self._target), "nothing": 0.0, "negative": -1.0}
        if kind in TIMES:
            return [odd.get(kind, float("nan"))] * repeats
        lasting = [self._noisy(mean) for _ in range(repeats)]
        return [float("inf") if kind == ENDLESS and i % 4 == 3 else t for i, t in enumerate(lasting)]

    def _noisy(self, mean: float) -> float:
        return mean * self._load() * self._level * max(1 + self._rng.gauss(0, self._setup.noise), 0.5)

    def _load(self) -> float:
        try:
            with open(self._setup.load) as f:
                return float(f.read() or 1)
        except OSError:
            return 1.0

    def reference(self) -> dict[str, float]:
        return {name: self._noisy(time) for name, time in REFERENCES.items()}

    def timed(self, subject: Subject) -> Call:
        return subject.call

    def rates(self) -> tuple[float, float]:
        return 0.8 * self._target.bandwidth, 0.7 * self._target.flops

    def facts(self) -> dict[str, Any]:
        return {"simulated": True}

    def sound(self) -> None:
        if self._lost:
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered")


def microseconds(subject: Subject, gpu: Target, times: Mapping[Pairs, float]) -> float:
    """The same for a configuration every time: up to a few times the bound, by how far its knobs are from a point of
    the space that depends on the call."""
    step: Step = subject.steps[0]
    if step.config_pairs in times:
        return times[step.config_pairs]
    best = hashlib.sha256(repr((subject.call.kernel, subject.call.dims, subject.call.sizes)).encode()).digest()
    factors = []
    for i, (knob, value) in enumerate(step.config_pairs):
        values = sorted({*KERNELS[step.name].space[knob], value})
        factors.append(1 + 0.15 * abs(values.index(value) - best[i] % len(values)))
    return 2.0 + 1.1 * bound(subject.call, gpu) * prod(factors)


def uncompiled(requests: Sequence[Any], *context: Any) -> Iterator[Compiled]:
    """In place of `compile_each`: nothing is compiled, everything could be launched."""
    usage = Usage("sm_90", 7, 32, 0, 0, 0, 0, (), 16, 100)
    for i, r in enumerate(requests):
        cubin = Cubin(str(i).encode(), "long", r.kernel, 0, 4, 0, 1, 0, 0)
        yield Compiled(r, cubin, usage, Report((), 0, "none", 1))


@contextmanager
def simulated_judge(simulation: Simulation, timeout: float = 30.0) -> Iterator[MeasuredJudge]:
    """The real judge and the real processes, on a simulation of the device and of the compilers."""
    runner: Any = None
    with MeasuringPool(simulation, __name__, timeout) as pool, patch.object(judging, "compile_each", uncompiled):
        yield MeasuredJudge(target(simulation.target), DEVICE, runner, pool, BuildCache(Path("/nowhere")))


def simulated_sweep(folder: Path, tasks: Sequence[Task], simulation: Simulation, trials: int) -> None:
    """The real sweep, its log and its records in ``folder``."""
    with simulated_judge(simulation) as judge:
        log = TrialLog(folder / "log.jsonl")
        gpu = target(simulation.target)
        Sweep(tasks, gpu, judge, log, folder / "records.jsonl", Effort(trials, 4)).run()

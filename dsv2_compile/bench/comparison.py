"""An engine and its peers in turn, A B A B, each run a process of its own with the same threads and tokens."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv2_compile.bench.measure import Workload
from dsv2_compile.bench.process import run
from dsv2_compile.bench.stats import Spread
from dsv2_compile.errors import UsageError
from dsv2_compile.progress import Progress

SUBJECTS = ("engine", "eager", "compile")


@dataclass(frozen=True)
class Run:
    """One process. ``report``: a `BenchReport` in JSON, None if it failed, and then why."""

    subject: str
    round: int
    seconds: float
    peak_rss_bytes: int
    report: dict[str, Any] | None
    failure: str | None


@dataclass(frozen=True)
class Line:
    """A subject at one point: the spread of its runs' medians, and how many times the engine's time that is."""

    what: str
    subject: str
    ms: Spread
    times_engine: float | None


@dataclass(frozen=True)
class Comparison:
    """``same_top1``: all runs agree on the likeliest tokens after the first prompt; None if nothing was prefilled."""

    workload: Workload
    runs: tuple[Run, ...]
    summary: tuple[Line, ...]
    same_top1: bool | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    engine: str | Path,
    checkpoint: str | Path,
    work: Workload,
    subjects: Sequence[str] = SUBJECTS,
    rounds: int = 2,
    timeout: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Comparison:
    """Run every subject ``rounds`` times. A run that fails or passes ``timeout`` seconds is recorded, not raised."""
    if unknown := set(subjects) - set(SUBJECTS):
        raise UsageError(f"There is nothing called {min(unknown)} to compare.", f"Choose from {', '.join(SUBJECTS)}.")
    runs: list[Run] = []
    for turn in range(rounds):
        for subject in subjects:
            progress(f"{subject}, round {turn + 1}", len(runs), rounds * len(subjects))
            path = engine if subject == "engine" else checkpoint
            runs.append(_run(subject, turn, Path(path), work, timeout))
    return Comparison(work, tuple(runs), _summary(runs), _same_top1(runs))


def _run(subject: str, turn: int, path: Path, work: Workload, timeout: float | None) -> Run:
    request = json.dumps({"subject": subject, "path": str(path.absolute()), "workload": asdict(work)})
    done = run(
        [sys.executable, "-m", "dsv2_compile.bench.worker"],
        request,
        timeout,
        {
            "OMP_NUM_THREADS": str(work.threads),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    )
    report, failure = None, None
    if done.timed_out:
        failure = f"took longer than {timeout:g} s"
    elif done.status < 0:
        failure = f"ended by signal {-done.status}"
    elif done.status:
        failure = (done.stderr.strip().splitlines() or ["no message"])[-1][:500]
    else:
        report = json.loads(done.stdout)
    return Run(subject, turn + 1, done.seconds, done.peak_rss_bytes, report, failure)


def _summary(runs: Sequence[Run]) -> tuple[Line, ...]:
    medians: dict[str, dict[str, list[float]]] = {}
    for r in runs:
        for what, ms in _points(r):
            medians.setdefault(what, {}).setdefault(r.subject, []).append(ms)
    lines = []
    for what, by_subject in medians.items():
        spreads = {subject: Spread.of(values) for subject, values in by_subject.items()}
        own = spreads.get("engine")
        lines += [Line(what, s, ms, ms.median / own.median if own else None) for s, ms in spreads.items()]
    return tuple(lines)


def _points(r: Run) -> list[tuple[str, float]]:
    if r.report is None:
        return []
    m = r.report["measurements"]
    prefill = [(f"prefill {p['tokens']}", p["ms"]["median"]) for p in m["prefill"]]
    return prefill + [(f"decode at {p['context']}", p["ms"]["median"]) for p in m["decode"]]


def _same_top1(runs: Sequence[Run]) -> bool | None:
    seen = {tuple(r.report["measurements"]["top1"]) for r in runs if r.report} - {()}
    return len(seen) == 1 if seen else None

"""What a report holds: plain data, from which the page is drawn and the JSON is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dsv2_compile.autotune.record import MEASURED, Key, key_json
from dsv2_compile.autotune.report.read import Pairs
from dsv2_compile.autotune.trial import OK, STATUSES

UNUSABLE = tuple(s for s in STATUSES if s != OK)


@dataclass(frozen=True)
class Point:
    """The last trial of a configuration. ``trial``: its number in the series, from 1 on. ``rank``: by time, from 1 on;
    those that are not OK follow, by status. ``microseconds``: None unless OK."""

    trial: int
    rank: int
    status: str
    microseconds: float | None
    config: Pairs
    default: bool
    reason: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Group:
    """Configurations with a knob from ``low`` to ``high``: how many are OK and how many not, and the least time and
    the quartiles of those that are, in microseconds; None if none is."""

    low: int
    high: int
    ok: int
    unusable: int
    best: float | None
    quartiles: tuple[float, float, float] | None


@dataclass(frozen=True)
class Effect:
    """``explained``: share of the variance of log time that lies between the groups."""

    knob: str
    explained: float
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Series:
    """Trials of a task that one judge made. ``counts`` by status and ``reasons``, (status, reason, count), are of
    configurations; ``trials`` and ``seconds`` of all trials. ``near``: configurations within 5 % of the best.
    ``default``: trial of the kernel's own configuration. ``curve``: (trial, microseconds) where a new best came.
    ``points``: of all configurations, or of some if there are too many. ``effects``: the strongest first."""

    judge: str
    provenance: str
    trials: int
    seconds: float
    configs: int
    counts: Mapping[str, int]
    reasons: tuple[tuple[str, str, int], ...]
    near: int
    default: Point | None
    best: Point | None
    curve: tuple[tuple[int, float], ...]
    effects: tuple[Effect, ...]
    points: tuple[Point, ...]

    @property
    def measured(self) -> bool:
        return self.provenance == MEASURED


@dataclass(frozen=True)
class Agreement:
    """Of a prediction with a measurement of the same configurations. ``regret``: by how much the measured time of the
    configuration that is predicted best exceeds the best measured; ``regret_of_5``: that of the best of the five
    predicted best. ``scale``: median of measured over predicted. ``points``: (predicted, measured, measured rank), the
    times in microseconds."""

    predicted_by: str
    measured_by: str
    configs: int
    spearman: float | None
    regret: float
    regret_of_5: float
    scale: float
    points: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Winner:
    """``source``: "record", what a build uses, or "trial", the fastest one where no record is as good. ``default``:
    microseconds of the kernel's own configuration, None if it has none."""

    source: str
    provenance: str
    judge: str
    config: Pairs
    microseconds: float
    default: float | None
    bound: float
    checks: tuple[str, ...]

    @property
    def gain(self) -> float | None:
        """How many times as fast as the default."""
        return self.default / self.microseconds if self.default else None

    @property
    def of_bound(self) -> float:
        """The bound as a share of the time: 1 is as fast as the target allows."""
        return self.bound / self.microseconds


@dataclass(frozen=True)
class Case:
    """One kernel at one place. ``where``: its sizes, and dims where only they tell it from another. ``series``: the
    one that counts most first: measured before predicted, then the newest. ``created``: seconds since 1970 of the
    last trial or record."""

    key: Key
    what: str
    where: str
    bound: float
    created: int
    series: tuple[Series, ...]
    agreement: Agreement | None
    winner: Winner | None

    @property
    def main(self) -> Series | None:
        return self.series[0] if self.series else None


@dataclass(frozen=True)
class Totals:
    """Of a target, over the main series of its cases. ``gain``, ``of_bound``: geometric means over the cases with a
    winner and, for the gain, a default. ``spearman``: median over the cases that have one."""

    cases: int
    measured: int
    trials: int
    configs: int
    counts: Mapping[str, int]
    reasons: tuple[tuple[str, str, int], ...]
    seconds: float
    gain: float | None
    of_bound: float | None
    spearman: float | None


@dataclass(frozen=True)
class Part:
    target: str
    totals: Totals
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Report:
    """``damaged``: torn or changed lines in logs and records; ``refused``: (reason, count) of sound lines that hold
    nothing usable. ``superseded``: trials of older sources or compilers or models, which are left out. ``left_out``:
    cases beyond those that a page holds."""

    files: tuple[str, ...]
    damaged: int
    refused: tuple[tuple[str, int], ...]
    superseded: int
    left_out: int
    parts: tuple[Part, ...]

    @property
    def cases(self) -> list[Case]:
        return [c for p in self.parts for c in p.cases]

    @property
    def measured(self) -> int:
        """Cases whose winner was measured."""
        return sum(p.totals.measured for p in self.parts)

    def to_json(self, points: bool) -> dict[str, Any]:
        """``points``: with every configuration that is drawn."""
        out: dict[str, Any] = _plain(self)
        if not points:
            for case in (c for p in out["parts"] for c in p["cases"]):
                for part in [*case["series"], *filter(None, [case["agreement"]])]:
                    del part["points"]
        return out


def _plain(value: Any) -> Any:
    if isinstance(value, Key):
        return key_json(value)
    if isinstance(value, tuple) and value and isinstance(value[0], Point):
        return columns(value)
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _named(f.name, getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return dict(value) if isinstance(value, Mapping) else value


def _named(name: str, value: Any) -> Any:
    return dict(value) if name in ("config", "facts") else _plain(value)


def columns(points: Sequence[Point]) -> dict[str, Any]:
    """Points by field: thousands of them are short so. ``reason`` is a number in ``reasons``."""
    knobs = sorted({k for p in points for k, _ in p.config})
    configs = [dict(p.config) for p in points]
    reasons = sorted({p.reason for p in points})
    numbers = {reason: i for i, reason in enumerate(reasons)}
    return {
        "trial": [p.trial for p in points],
        "rank": [p.rank for p in points],
        "status": [STATUSES.index(p.status) for p in points],
        "microseconds": [_plain(p.microseconds) for p in points],
        "config": {k: [c.get(k) for c in configs] for k in knobs},
        "reason": [numbers[p.reason] for p in points],
        "reasons": reasons,
    }

"""The result of a check: plain data, as JSON, as text for a terminal, as an error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from dsv2_compile.errors import NumericError
from dsv2_compile.verify.diagnosis import Finding
from dsv2_compile.verify.metrics import Figures, Top1
from dsv2_compile.verify.rule import FACTOR, Verdict

RULE = f"error at most {FACTOR} x e0 + eps on average, and on every path {FACTOR**2:g} x spread x e0 + eps"
RUNTIME = "the engine, by the runtime that serves it"
REPEATED = {True: "same bits", False: "other bits", None: "not tried"}


@dataclass(frozen=True)
class Section:
    """The rows of one probe (a layer, or None: the logits) that one program gave on one path.

    ``flips``: a router flip may reach all of these rows, they are judged against an e0 with flips of its own.
    ``apart``: rows a flip may reach, when others are judged; told, not judged.
    """

    path: str
    phase: str
    layer: int | None
    verdict: Verdict
    flips: bool
    apart: Verdict | None

    @property
    def probe(self) -> str:
        return "logits" if self.layer is None else f"layer {self.layer}"


@dataclass(frozen=True)
class Level:
    """The typical error of all rows that one program gave of one probe, as a part of its limit."""

    phase: str
    layer: int | None
    rows: int
    ratio: float

    @property
    def passed(self) -> bool:
        return self.ratio <= 1


@dataclass(frozen=True)
class Agreement:
    """Top-1 agreement on one path; ``apart`` rows that a router flip may reach are not counted."""

    path: str
    top1: Top1
    apart: int


@dataclass(frozen=True)
class Consistency:
    """One path against ``batch`` at the positions both have: largest relative L2 difference, and if bit for bit."""

    path: str
    rows: int
    logits: int
    difference: float
    bitwise: bool


@dataclass(frozen=True)
class Report:
    """``findings``: by path and phase, the first bad layer and what feeds it. ``repeatable``: the same input twice
    gave the same bits, None if it was not run twice or the first time gave NaN. ``executed``: what ran, and where;
    ``of_engine``: that was the engine itself, not its twin. ``oracle_difference``: of the stored oracle results from
    fresh ones, None if the checkpoint was not given; ``oracle_limit`` what it may be."""

    engine: str
    dtype: str
    oracle_dtype: str
    sections: tuple[Section, ...]
    levels: tuple[Level, ...]
    findings: tuple[Finding, ...]
    top1: tuple[Agreement, ...]
    consistency: tuple[Consistency, ...]
    repeatable: bool | None
    padding_nan: int
    routing: dict[str, int]
    spread: Figures
    executed: str = RUNTIME
    of_engine: bool = True
    oracle_difference: float | None = None
    oracle_limit: float | None = None

    def with_oracle(self, difference: float, limit: float) -> Report:
        return replace(self, oracle_difference=difference, oracle_limit=limit)

    @property
    def problems(self) -> list[str]:
        """One line each; empty if the engine passes."""
        out = list(map(str, self.findings))
        out += [
            f"{a.path}: another most likely token at {a.top1.stable - a.top1.stable_agree} of {a.top1.stable} "
            "positions where rounding cannot change it"
            for a in self.top1
            if a.top1.stable_agree < a.top1.stable
        ]
        if self.repeatable is False:
            out.append("the same input twice does not give the same bits")
        if self.oracle_difference is not None and not self.oracle_difference <= (self.oracle_limit or 0.0):
            out.append(f"the golden data are not of this checkpoint: they differ by {self.oracle_difference:.1e}")
        return out

    @property
    def passed(self) -> bool:
        return not self.problems

    def require(self) -> None:
        """NumericError naming the first bad layer, unless the engine passes."""
        problems = self.problems
        if problems:
            raise NumericError(
                f"{self.engine} does not compute what the eager model computes: {problems[0]}",
                "The engine is unverified: do not use it. dsv2-compile verify --report FILE.html shows every layer.",
                problems[1:],
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON has it: null for what is not finite."""
        data: dict[str, Any] = _finite({"passed": self.passed, "problems": self.problems, **asdict(self)})
        return data

    def summary(self) -> dict[str, Any]:
        """For the manifest: the worst section and the counts."""
        worst = self.worst
        data: dict[str, Any] = {
            "rule": RULE,
            "oracle": self.oracle_dtype,
            "passed": self.passed,
            "problems": self.problems[:20],
            "sections": len(self.sections),
            "typical": max(level.ratio for level in self.levels) if self.levels else None,
            "worst": {
                "path": worst.path,
                "phase": worst.phase,
                "probe": worst.probe,
                "rel_l2_p95": worst.verdict.error.rel_l2_p95,
                "e0": worst.verdict.e0.rel_l2_p95,
                "limit": worst.verdict.limits["rel_l2_p95"],
            },
            "top1": {
                "stable": sum(a.top1.stable for a in self.top1),
                "stable_agree": sum(a.top1.stable_agree for a in self.top1),
                "unstable": sum(a.top1.unstable for a in self.top1),
                "unstable_agree": sum(a.top1.unstable_agree for a in self.top1),
            },
            "routing": self.routing,
            "repeatable": self.repeatable,
            "executed": self.executed,
            "of_engine": self.of_engine,
        }
        return {k: _finite(v) for k, v in data.items()}

    def _typical(self) -> str:
        """The largest of the typical errors of each program."""
        largest: dict[str, float] = {}
        for level in self.levels:
            largest[level.phase] = max(level.ratio, largest.get(level.phase, 0.0))
        told = [f"{phase} {ratio:.2f} of the limit at most" for phase, ratio in largest.items()]
        return ", ".join(told) or "no rows that a router flip cannot reach"

    @property
    def worst(self) -> Section:
        """The section nearest to, or farthest over, one of its limits."""
        return max(self.sections, key=lambda s: s.verdict.ratio)

    def text(self) -> str:
        """A table by path, phase and probe kind, then the counts and the verdict."""
        lines = [
            f"{'path':8}{'phase':9}{'probe':10}{'rows':>6}{'rel L2 p95':>12}{'e0':>10}{'limit':>10}{'cosine p5':>16}"
        ]
        lines += [_line(s) for s in _shown(self.sections)]
        total = self.summary()["top1"]
        lines += [
            f"on average: {self._typical()}",
            f"top-1: {total['stable_agree']} of {total['stable']} stable and {total['unstable_agree']} of "
            f"{total['unstable']} unstable positions agree",
            f"router: {self.routing['unstable']} of {self.routing['choices']} choices unstable, "
            f"eager mode turns {self.routing['flips']}",
            *(
                f"{c.path} against batch: {'same bits' if c.bitwise else f'{c.difference:.1e} apart'} "
                f"({c.rows} rows, {c.logits} logits)"
                for c in self.consistency
            ),
            f"repeated: {REPEATED[self.repeatable]}",
        ]
        if self.oracle_difference is not None:
            lines.append(
                f"golden data against the checkpoint: {self.oracle_difference:.1e} (limit {self.oracle_limit:.1e})"
            )
        lines.append(f"executed: {self.executed}")
        lines += self.problems or [f"passed: {RULE} ({len(self.sections)} sections)"]
        return "\n".join(lines)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(sections: Iterable[Section]) -> list[Section]:
    """Of each path and phase: every failed section, the worst layer, and the logits."""
    groups: dict[tuple[str, str], list[Section]] = {}
    for s in sections:
        groups.setdefault((s.path, s.phase), []).append(s)
    out = []
    for group in groups.values():
        layers = [s for s in group if s.layer is not None]
        worst = max(layers, key=lambda s: s.verdict.ratio)
        out += [s for s in group if s is worst or s.layer is None or not s.verdict.passed]
    return out


def _line(s: Section) -> str:
    v = s.verdict
    mark = "" if v.passed else "  FAILED " + ", ".join(v.failed)
    return (
        f"{s.path:8}{s.phase:9}{s.probe:10}{v.error.rows:6}{v.error.rel_l2_p95:12.2e}{v.e0.rel_l2_p95:10.2e}"
        f"{v.limits['rel_l2_p95']:10.2e}{v.error.cosine_p5:16.12f}{'  with flips' if s.flips else ''}{mark}"
    )

"""The judge that needs no GPU: every candidate is compiled for the target and checked, its time is predicted."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

from dsv2_compile.autotune.host_check import NAME, wrong_on_host
from dsv2_compile.autotune.predict import VERSION, predict
from dsv2_compile.autotune.record import PREDICTED
from dsv2_compile.autotune.search import pairs
from dsv2_compile.autotune.tasks import Task
from dsv2_compile.autotune.trial import FAILED, OK, REFUSED, WRONG, Confirmed, Trial
from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.compile import Compiled, compile_each, request
from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.backends.cuda.pool import Runner
from dsv2_compile.kernels.gpu.kernel import Config
from dsv2_compile.targets import Target

TIE = 0.05
"""Configurations this close to the fastest are taken for as fast: the model cannot tell them apart."""


class PredictedJudge:
    """``runner``: where candidates are compiled."""

    provenance, device = PREDICTED, ""

    def __init__(self, target: Target, runner: Runner, cache: BuildCache | None = None) -> None:
        self._target, self._runner, self._cache = target, runner, cache or BuildCache()

    def judge(self, task: Task, configs: Sequence[Config]) -> Generator[Trial, None, None]:
        asked = {requested(task, c): c for c in configs}
        with closing(compile_each(list(asked), self._target, self._runner, self._cache)) as results:
            for built in results:
                yield self._trial(task, asked[built.request], built)

    def _trial(self, task: Task, config: Config, built: Compiled) -> Trial:
        if (unusable := why_not(built)) is not None:
            status, reason = unusable
            return Trial(config, status, reason=reason, seconds=built.seconds)
        try:
            found = predict(task.call, config, built, self._target)
        except (ArithmeticError, ValueError) as e:
            return Trial(config, FAILED, reason=f"no prediction: {type(e).__name__}: {e}", seconds=built.seconds)
        parts = {name: round(value, 3) for name, value in asdict(found).items()}
        told = facts(built) | {"model": VERSION, "limit": found.limit, "prediction": parts}
        return Trial(config, OK, found.microseconds, seconds=built.seconds, facts=told)

    def confirm(self, task: Task, ranked: Sequence[Trial], default: Trial | None) -> Confirmed:
        """The default, if nothing is faster by more than `TIE`; else of those within `TIE` of the fastest the first
        by their knobs. What is wrong on the host is refuted."""
        usable, refuted = list(ranked), list[Trial]()
        while usable:
            band = [t for t in usable if t.microseconds <= usable[0].microseconds * (1 + TIE)]
            chosen = default if default in band else min(band, key=lambda t: pairs(t.config))
            assert chosen is not None
            wrong = wrong_on_host(task.call.kernel, chosen.config, task.call.dtype)
            if not wrong:
                return Confirmed(chosen, ("compiled", "static checks", "no spills", NAME), tuple(refuted))
            refuted.append(replace(chosen, status=WRONG, microseconds=0.0, reason=wrong))
            usable.remove(chosen)
        return Confirmed(None, refuted=tuple(refuted))


def requested(task: Task, config: Config) -> Request:
    claims = {n: n in task.aligned for n in task.kernel.args}
    return request(task.kernel, dict(task.call.dims), config, task.call.dtype, claims)


def why_not(built: Compiled) -> tuple[str, str] | None:
    """Status and reason of what must not be used, None if it may."""
    if built.cubin is None:
        return (FAILED if built.crashed else REFUSED), built.reason
    if not built.ok:
        return REFUSED, built.reason
    assert built.report is not None
    if built.report.spills:
        return REFUSED, f"spills {built.report.spills} bytes a thread"
    return None


def facts(built: Compiled) -> dict[str, Any]:
    """What the compiler produced."""
    assert built.cubin is not None and built.usage is not None and built.report is not None
    return {
        "registers": built.usage.registers,
        "shared": built.cubin.shared,
        "blocks_per_sm": built.report.blocks_per_sm,
        "matrix": built.report.matrix,
        "cached": built.cached,
    }

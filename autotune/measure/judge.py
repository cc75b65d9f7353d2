"""The judge that measures: compile, check, time; and before a winner is taken, everything that may still be wrong
with it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from dsv2_compile.autotune.measure.jobs import Compare, Found, Job, Measure, Race, Subject, Verify, compiled_step
from dsv2_compile.autotune.measure.pool import Measuring
from dsv2_compile.autotune.measure.stats import TIE, apart
from dsv2_compile.autotune.predicted import facts, requested, why_not
from dsv2_compile.autotune.record import MEASURED, Key
from dsv2_compile.autotune.search import Pairs, pairs
from dsv2_compile.autotune.tasks import Task
from dsv2_compile.autotune.trial import FAILED, OK, WRONG, Confirmed, Trial
from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.compile import Compiled, compile_each, request
from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.backends.cuda.pool import Runner
from dsv2_compile.errors import PartialError
from dsv2_compile.kernels.gpu.cases import follower
from dsv2_compile.kernels.gpu.cases.makers import FEWEST
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config
from dsv2_compile.processes import Failure
from dsv2_compile.targets import Target

CLOSE = 1.5
"""Candidates that take up to so many times as long as the best so far are timed with more repeats."""
SEEDS = (1, 2, 3)
RACES, RACE_SECONDS = 1000, 3.0
ROUNDS = 12
"""Turns of a candidate and the default, in which each is timed."""
CANDIDATES = 8
"""Of the fastest, how many are looked at before the default is."""
MOST_UNOPENED = 3
"""Processes in a row that could not open the device, after which there is none."""


class MeasuredJudge:
    """A `Judge`. ``runner`` compiles, ``measuring`` measures on ``device``, a name for people and records."""

    provenance = MEASURED

    def __init__(
        self, target: Target, device: str, runner: Runner, measuring: Measuring, cache: BuildCache | None = None
    ) -> None:
        self.device = device
        self._target, self._runner, self._measuring, self._cache = target, runner, measuring, cache or BuildCache()
        self._best: dict[Key, float] = {}
        self._known: dict[tuple[Key, Pairs], tuple[str, ...]] = {}
        self._reference: Mapping[str, float] = {}

    def judge(self, task: Task, configs: Sequence[Config]) -> Generator[Trial, None, None]:
        ready: list[tuple[Compiled, Subject]] = []
        for built, subject in self._subjects(task, configs):
            if isinstance(subject, Subject):
                ready.append((built, subject))
            else:
                status, reason = subject
                yield Trial(dict(built.request.config), status, reason=reason, seconds=built.seconds)
        close = CLOSE * self._best.get(task.key, float("inf"))
        jobs = [Measure(subject, close, self._reference) for _, subject in ready]
        begin = time.monotonic()
        with closing(self._outcomes(jobs)) as outcomes:
            for index, outcome in outcomes:
                now = time.monotonic()
                yield self._trial(task, ready[index][0], outcome, now - begin)
                begin = time.monotonic()

    def _trial(self, task: Task, built: Compiled, outcome: Found | Failure, seconds: float) -> Trial:
        config, taken = dict(built.request.config), built.seconds + seconds
        if isinstance(outcome, Failure):
            return Trial(config, FAILED, reason=outcome.reason, seconds=taken, facts={"log": outcome.log[-500:]})
        known = facts(built) | dict(outcome.facts)
        if outcome.status == OK:
            self._best[task.key] = min(self._best.get(task.key, float("inf")), outcome.microseconds)
            self._reference = self._reference or outcome.facts["reference"]
        return Trial(config, outcome.status, outcome.microseconds, outcome.reason, taken, known)

    def _subjects(self, task: Task, configs: Sequence[Config]) -> Iterator[tuple[Compiled, Subject | tuple[str, str]]]:
        """Each configuration compiled, with what has to follow; or why it must not be used."""
        calls = {pairs(c): call for c in configs if (call := follower(task.call, c)) is not None}
        followers = {call: self._default(call) for call in calls.values()}
        built = {b.request: b for b in self._compile(list(followers.values()))}
        for first in self._compile([requested(task, c) for c in configs]):
            call = calls.get(first.request.config)
            steps = [first] if call is None else [first, built[followers[call]]]
            wrong = next((why for s in steps if (why := why_not(s)) is not None), None)
            yield first, wrong or Subject(task.call, tuple(compiled_step(s.request, s.cubin) for s in steps))

    def _default(self, call: Call) -> Request:
        kernel, dims = KERNELS[call.kernel], dict(call.dims)
        return request(kernel, dims, kernel.default(dims, self._target), call.dtype)

    def _compile(self, requests: Sequence[Request]) -> Iterator[Compiled]:
        if requests:
            with closing(compile_each(requests, self._target, self._runner, self._cache)) as results:
                yield from results

    def confirm(self, task: Task, ranked: Sequence[Trial], default: Trial | None) -> Confirmed:
        """The fastest that passes at held-out shapes and seeds, gives the same bits every time and, in turns with the
        default, is faster than that by more than chance; else the default, if it passes. Of those that are as fast
        as the fastest the first by their knobs; none that had no time of its own is taken."""
        kept = default if default is not None and default.ok else None
        refuted: list[Trial] = []
        for trial in candidates([t for t in ranked if t.ok and t.microseconds > 0])[:CANDIDATES]:
            own = kept is not None and pairs(trial.config) == pairs(kept.config)
            checks = self._passed(task, trial)
            if isinstance(checks, Trial):
                refuted.append(checks)
                kept = None if own else kept
                continue
            if own or kept is None:
                return Confirmed(trial, checks, tuple(refuted))
            if faster := self._faster(task, trial, kept):
                other = float(faster.facts["in_turns"]["default"])
                return Confirmed(faster, (*checks, "faster than the default"), tuple(refuted), other)
            theirs = self._passed(task, kept)
            if isinstance(theirs, Trial):
                return Confirmed(trial, checks, (*refuted, theirs))
            return Confirmed(kept, theirs, tuple(refuted))
        if kept is None:
            return Confirmed(None, refuted=tuple(refuted))
        theirs = self._passed(task, kept)
        if isinstance(theirs, Trial):
            return Confirmed(None, refuted=(*refuted, theirs))
        return Confirmed(kept, theirs, tuple(refuted))

    def _passed(self, task: Task, trial: Trial) -> tuple[str, ...] | Trial:
        """What ``trial`` has passed, now or before, or the trial refuted."""
        key = task.key, pairs(trial.config)
        if key not in self._known:
            checks = self._check(task, trial)
            if isinstance(checks, Trial):
                self._best.pop(task.key, None)
                return checks
            self._known[key] = checks
        return self._known[key]

    def _check(self, task: Task, trial: Trial) -> tuple[str, ...] | Trial:
        subject = self._subject(task, trial)
        if not isinstance(subject, Subject):
            return _refuted(trial, *subject)
        jobs: list[Job] = [Verify(subject, shape, SEEDS) for shape in range(FEWEST)]
        jobs.append(Race(subject, RACES, RACE_SECONDS))
        runs = 0
        with closing(self._outcomes(jobs)) as outcomes:
            for _, outcome in outcomes:
                if isinstance(outcome, Failure) or outcome.status != OK:
                    return _refuted(trial, FAILED if isinstance(outcome, Failure) else outcome.status, outcome.reason)
                runs = max(runs, int(outcome.facts.get("runs", 0)))
        return (
            "reference",
            "guard zones",
            f"{FEWEST} held-out shapes, {len(SEEDS)} seeds each",
            f"the same bits in {runs} runs",
        )

    def _faster(self, task: Task, trial: Trial, default: Trial) -> Trial | None:
        """``trial`` with the time that it took in turns with the default, if it is the faster one."""
        ours, theirs = self._subject(task, trial), self._subject(task, default)
        if not (isinstance(ours, Subject) and isinstance(theirs, Subject)):
            return None
        with closing(self._outcomes([Compare(ours, theirs, ROUNDS)])) as outcomes:
            ((_, found),) = outcomes
        if isinstance(found, Failure) or found.status != OK:
            return None
        other, margin = float(found.facts["microseconds"]), float(found.facts["margin"])
        if not apart(found.microseconds, other, (found.margin, margin)):
            return None
        in_turns = {"margin": found.margin, "default": other, "default_margin": margin}
        return replace(trial, microseconds=found.microseconds, facts={**trial.facts, "in_turns": in_turns})

    def _outcomes(self, jobs: Sequence[Job]) -> Generator[tuple[int, Found | Failure], None, None]:
        """Like `Measuring.run`; a process that could not open the device says nothing about its job. PartialError if
        several in a row cannot."""
        left, unopened, reason = list(range(len(jobs))), 0, ""
        while left:
            asked = list(left)
            with closing(self._measuring.run([jobs[i] for i in asked])) as outcomes:
                for at, outcome in outcomes:
                    if isinstance(outcome, Failure) and not outcome.opened:
                        unopened, reason = unopened + 1, _last_line(outcome)
                        break
                    unopened = 0
                    left.remove(asked[at])
                    yield asked[at], outcome
            if unopened == MOST_UNOPENED:
                raise PartialError(
                    f"{self.device} cannot be opened any more: {reason}",
                    "See what nvidia-smi says. Run the same command again: it goes on from the trials that were made.",
                )

    def _subject(self, task: Task, trial: Trial) -> Subject | tuple[str, str]:
        """Compiled, or why it is not."""
        ((_, subject),) = self._subjects(task, [dict(trial.config)])
        return subject


def _refuted(trial: Trial, status: str, reason: str) -> Trial:
    return replace(trial, status=WRONG if status == WRONG else FAILED, microseconds=0.0, reason=reason)


def _last_line(failure: Failure) -> str:
    lines = failure.log.strip().splitlines()
    return lines[-1].strip() if lines else failure.reason


def candidates(ranked: Sequence[Trial]) -> list[Trial]:
    """Fastest first; those that are as fast as the fastest, within `TIE` however noisy, by their knobs, so that
    chance does not choose."""
    if not ranked:
        return []
    best = ranked[0]
    band = [t for t in ranked if t.microseconds <= best.microseconds * (1 + TIE)]
    return sorted(band, key=lambda t: pairs(t.config)) + [t for t in ranked if t not in band]

"""The sweep: every task is searched, every trial logged, every winner recorded; it may be stopped and goes on."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from dsv2_compile.autotune import base
from dsv2_compile.autotune.log import TrialLog
from dsv2_compile.autotune.predict import VERSION, bound
from dsv2_compile.autotune.record import Key, Record, launch_digest
from dsv2_compile.autotune.search import Pairs, Search, pairs, search
from dsv2_compile.autotune.space import plausible, seeds
from dsv2_compile.autotune.tasks import Task
from dsv2_compile.autotune.trial import Confirmed, Judge, Trial
from dsv2_compile.kernels.gpu.kernel import Config
from dsv2_compile.targets import Target

BATCH = 8
"""Configurations of a task that are asked for at once."""


@dataclass(frozen=True)
class Effort:
    """``trials``: most configurations of a task. ``seeds``: of these, the best by estimate, tried first."""

    trials: int
    seeds: int


EFFORTS = {"quick": Effort(16, 10), "full": Effort(160, 32)}


@dataclass
class Tally:
    """How far a sweep is. ``trials`` by status and ``reasons`` of this run, ``found`` in earlier ones, ``planned`` in
    all, at most; ``best``: of the task ``what`` at work, microseconds, and its ``bound``."""

    tasks: int
    finished: int = 0
    found: int = 0
    trials: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    planned: int = 0
    best: float = 0.0
    bound: float = 0.0
    what: str = ""


Told = Callable[[Tally], None]


@dataclass
class _State:
    task: Task
    default: Config
    search: Search
    bound: float
    over: bool = False
    trials: dict[Pairs, Trial] = field(default_factory=dict)
    won: Confirmed | None = None
    seen: int = 0
    confirmed: Pairs | None = None
    """``seen``: trials there were when ``won`` was looked for, ``confirmed`` the fastest of them."""

    @property
    def ranked(self) -> list[Trial]:
        return sorted((t for t in self.trials.values() if t.ok), key=lambda t: (t.microseconds, pairs(t.config)))

    @property
    def fastest(self) -> Pairs | None:
        return pairs(self.ranked[0].config) if self.ranked else None

    def least(self, trial: Trial) -> float:
        """The bound, of the inputs that ``trial`` was timed with if it was."""
        return float(trial.facts.get("bound", self.bound))

    def take(self, trial: Trial) -> None:
        self.trials[pairs(trial.config)] = trial
        self.search.tell(trial.config, trial.microseconds if trial.ok else None)


class Sweep:
    """One run over ``tasks``. ``deadline`` of time.monotonic: after it no new batch is begun. Trials that the log has
    from the same judge are not made again. ``records``: file that winners are appended to; ``found``: those of this
    run. ``known``: records whose configurations are worth a trial."""

    def __init__(
        self,
        tasks: Sequence[Task],
        target: Target,
        judge: Judge,
        log: TrialLog,
        records: Path,
        effort: Effort,
        known: base.Base | None = None,
        deadline: float = float("inf"),
        told: Told = lambda tally: None,
    ) -> None:
        self._target, self._judge, self._log, self._records = target, judge, log, records
        self._effort, self._deadline, self._told = effort, deadline, told
        self._known = known or base.Base()
        self._name = judge_name(judge)
        self._states = sorted(map(self._start, tasks), key=lambda s: -s.bound * s.task.count)
        self._found: dict[Key, Record] = {}
        self.tally = Tally(
            len(tasks),
            found=sum(len(s.trials) for s in self._states),
            planned=sum(max(len(s.trials), s.search.most) for s in self._states),
        )

    def run(self) -> list[Record]:
        """Round after round a batch of every task, those first that take longest at their bound, and its winner
        confirmed, so that what matters most has one when the time is up. A record is written when its task is over or
        the sweep ends, however it does: a winner may be refuted later. What was tried stays in the log if this is
        interrupted. ``tally.finished`` is less than ``tally.tasks`` if time was short."""
        left = self._states
        try:
            while left and not self._late():
                for state in left:
                    if self._late():
                        break
                    state.over = not self._batch(state)
                    self._confirm(state)
                    if state.over:
                        self.tally.finished += 1
                        self._save(state)
                left = [s for s in left if not s.over]
        finally:
            for state in left:
                if not state.over:
                    self._save(state)
        return self.found

    @property
    def found(self) -> list[Record]:
        """Of winners, as far as they have been found."""
        return list(self._found.values())

    def _late(self) -> bool:
        return time.monotonic() >= self._deadline

    def _start(self, task: Task) -> _State:
        kernel, dims = task.kernel, dict(task.call.dims)
        default = dict(kernel.default(dims, self._target))
        known = self._known.worth_trying(task.call, self._target)
        first = [default, *known, *seeds(task.call, self._target, self._effort.seeds)]
        space = {k: tuple(sorted({*values, *(c[k] for c in first)})) for k, values in kernel.space.items()}
        seed = int.from_bytes(hashlib.sha256(repr(task.key).encode()).digest()[:4], "little")
        how = search(space, first, self._effort.trials, seed, lambda c: plausible(task.call, c, self._target))
        state = _State(task, default, how, bound(task.call, self._target))
        for trial in self._log.of(task, self._name):
            state.take(trial)
        return state

    def _batch(self, state: _State) -> bool:
        """False if nothing is left to try after it."""
        room = self._effort.trials - len(state.trials)
        configs = state.search.ask(min(BATCH, room)) if room > 0 else []
        if not configs:
            return False
        with closing(self._judge.judge(state.task, configs)) as trials:
            for trial in trials:
                self._take(state, trial)
                self._tell(state, trial)
        return len(state.trials) < min(self._effort.trials, state.search.most)

    def _take(self, state: _State, trial: Trial) -> None:
        default = pairs(trial.config) == pairs(state.default)
        self._log.add(state.task, self._name, trial, state.least(trial), default)
        state.take(trial)

    def _tell(self, state: _State, trial: Trial) -> None:
        tally = self.tally
        tally.trials[trial.status] += 1
        if not trial.ok:
            tally.reasons[trial.reason] += 1
        best = state.ranked[0] if state.ranked else trial
        tally.what, tally.bound = f"{state.task.call.kernel}, {state.task.what}", state.least(best)
        tally.best = best.microseconds
        self._told(tally)

    def _confirm(self, state: _State) -> None:
        """Look for the winner if another one is the fastest, and a last time when all trials are known: of those that
        are as fast as the fastest any may win."""
        if state.fastest == state.confirmed and not (state.over and len(state.trials) > state.seen):
            return
        state.won = self._judge.confirm(state.task, state.ranked, state.trials.get(pairs(state.default)))
        for trial in state.won.refuted:
            self._take(state, trial)
        state.confirmed, state.seen = state.fastest, len(state.trials)

    def _save(self, state: _State) -> None:
        """The record of the winner, if there is one."""
        won = state.won
        if won is None or won.trial is None:
            return
        default = state.trials.get(pairs(state.default))
        reference = default if default is not None and default.ok else won.trial
        record = Record(
            key=state.task.key,
            config=pairs(won.trial.config),
            provenance=self._judge.provenance,
            microseconds=won.trial.microseconds,
            default_microseconds=won.default_microseconds or reference.microseconds,
            bound=state.least(won.trial),
            launch=launch_digest(state.task.key, dict(won.trial.config)),
            model=VERSION,
            device=self._judge.device,
            checks=won.checks,
            trials=len(state.trials),
            created=int(time.time()),
        )
        base.save(self._records, [record])
        self._found[record.key] = record


def judge_name(judge: Judge) -> str:
    """What two trials have in common that may be compared: the device, or the version of the model."""
    return f"{judge.provenance} on {judge.device}" if judge.device else f"{judge.provenance}, model {VERSION}"

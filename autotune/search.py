"""Which configurations to try next: all of a small space, else Optuna's sampler."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from dsv2_compile.kernels.gpu.kernel import Config

Pairs = tuple[tuple[str, int], ...]


class Search(Protocol):
    most: int
    """Configurations that it will ask for, at most."""

    def ask(self, count: int) -> list[Config]:
        """Up to ``count`` configurations that were not asked for before; none when the search is over."""

    def tell(self, config: Config, microseconds: float | None) -> None:
        """What came of a configuration, asked for or not; None if it cannot be used."""


class Exhaustive:
    """All of ``points``, in their order."""

    def __init__(self, points: Sequence[Config]) -> None:
        self._left, self.most = list(points), len(points)
        self._told: set[Pairs] = set()

    def ask(self, count: int) -> list[Config]:
        self._left = [c for c in self._left if pairs(c) not in self._told]
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def tell(self, config: Config, microseconds: float | None) -> None:
        self._told.add(pairs(config))


class Sampler:
    """Optuna's TPE over ``space``, which starts with ``first``; at most ``limit`` configurations.

    ``possible`` says which points are worth a trial. Where the sampler comes back to what it knows, a point is taken at
    random. What is told without having been asked for counts as known.
    """

    TRIES, RANDOM_TRIES = 10, 1000
    """Suggestions, and after them random points, of which one has to be new; else the space counts as exhausted."""

    def __init__(
        self,
        space: Mapping[str, Sequence[int]],
        first: Iterable[Config],
        limit: int,
        seed: int,
        possible: Callable[[Config], bool] = lambda config: True,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(n_startup_trials=8, multivariate=True, constant_liar=True, seed=seed)
        self._new_study = partial(optuna.create_study, sampler=sampler)
        self._study = self._new_study()
        self._choices: dict[str, optuna.distributions.BaseDistribution] = {
            knob: optuna.distributions.CategoricalDistribution(tuple(values)) for knob, values in space.items()
        }
        self._states, self._known = optuna.trial.TrialState, optuna.trial.create_trial
        self._space, self._rng = space, random.Random(seed)
        self._first, self.most, self._possible = list(first), limit, possible
        self._open: dict[Pairs, Any] = {}
        self._seen: set[Pairs] = set()
        self._told: dict[Pairs, float | None] = {}

    def ask(self, count: int) -> list[Config]:
        found: list[Config] = []
        while len(found) < count and len(self._seen) < self.most:
            trial = self._favourite() or self._suggested() or self._random()
            if trial is None:
                break
            config = dict(trial.params)
            self._seen.add(pairs(config))
            self._open[pairs(config)] = trial
            found.append(config)
        return found

    def _favourite(self) -> Any:
        while self._first:
            config = self._first.pop(0)
            if pairs(config) not in self._seen:
                return self._given(config)
        return None

    def _suggested(self) -> Any:
        for _ in range(self.TRIES):
            trial = self._study.ask(self._choices)
            if self._new(trial.params):
                return trial
            self._study.tell(trial, state=self._states.FAIL)
        return None

    def _random(self) -> Any:
        for _ in range(self.RANDOM_TRIES):
            config = {knob: self._rng.choice(values) for knob, values in self._space.items()}
            if self._new(config):
                return self._given(config)
        return None

    def _given(self, config: Config) -> Any:
        self._study.enqueue_trial(dict(config))
        return self._study.ask(self._choices)

    def _new(self, config: Config) -> bool:
        return pairs(config) not in self._seen and self._possible(config)

    def tell(self, config: Config, microseconds: float | None) -> None:
        before = self._told.get(pairs(config))
        self._seen.add(pairs(config))
        self._told[pairs(config)] = microseconds
        if before is not None and microseconds is None:
            self._forget()
        else:
            self._tell(config, microseconds)

    def _forget(self) -> None:
        """A study is told once of a point: what was refuted is left out of a new one."""
        self._study, self._open = self._new_study(), {}
        for config, microseconds in self._told.items():
            self._tell(dict(config), microseconds)

    def _tell(self, config: Config, microseconds: float | None) -> None:
        state = self._states.FAIL if microseconds is None else self._states.COMPLETE
        trial = self._open.pop(pairs(config), None)
        if trial is not None:
            self._study.tell(trial, microseconds, state=state)
        elif all(value in self._space.get(knob, ()) for knob, value in config.items()):
            known = self._known(params=dict(config), distributions=self._choices, value=microseconds, state=state)
            self._study.add_trial(known)


def search(
    space: Mapping[str, Sequence[int]],
    first: Sequence[Config],
    limit: int,
    seed: int,
    possible: Callable[[Config], bool] = lambda config: True,
) -> Search:
    """``first``: what is tried first. Exhaustive if no more than ``limit`` points are possible."""
    first = list({pairs(c): c for c in first}.values())
    known = {pairs(c) for c in first}
    points: list[Config] = list(first)
    for values in itertools.product(*space.values()):
        point = dict(zip(space, values, strict=True))
        if pairs(point) not in known and possible(point):
            points.append(point)
            if len(points) > limit:
                break
    else:
        return Exhaustive(points)
    return Sampler(space, first, limit, seed, possible)


def pairs(config: Config) -> Pairs:
    return tuple(sorted(config.items()))

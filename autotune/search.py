"""Which configurations to try next: all of a small space, else Optuna's sampler."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    ``possible`` says which points are worth a trial; the others are told to the sampler as failures.
    """

    PATIENCE = 50
    """Asks in a row that give nothing new, after which the space counts as exhausted."""

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
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=8, multivariate=True, group=False, constant_liar=True, seed=seed
        )
        self._study = optuna.create_study(sampler=sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self._choices: dict[str, optuna.distributions.BaseDistribution] = {
            knob: optuna.distributions.CategoricalDistribution(tuple(values)) for knob, values in space.items()
        }
        self._first, self.most, self._possible = list(first), limit, possible
        self._open: dict[Pairs, Any] = {}
        self._seen: set[Pairs] = set()

    def ask(self, count: int) -> list[Config]:
        found: list[Config] = []
        idle = 0
        while len(found) < count and len(self._seen) < self.most and idle < self.PATIENCE:
            trial, config = self._next()
            key = pairs(config)
            if key in self._seen or not self._possible(config):
                self._study.tell(trial, state=self._failed)
                idle += 1
                continue
            idle = 0
            self._seen.add(key)
            self._open[key] = trial
            found.append(config)
        return found

    def _next(self) -> tuple[Any, Config]:
        if self._first:
            self._study.enqueue_trial(dict(self._first.pop(0)))
        trial = self._study.ask(self._choices)
        return trial, dict(trial.params)

    def tell(self, config: Config, microseconds: float | None) -> None:
        trial = self._open.pop(pairs(config), None)
        if trial is None:
            self._seen.add(pairs(config))
        elif microseconds is None:
            self._study.tell(trial, state=self._failed)
        else:
            self._study.tell(trial, microseconds)


def search(
    space: Mapping[str, Sequence[int]],
    first: Sequence[Config],
    limit: int,
    seed: int,
    possible: Callable[[Config], bool] = lambda config: True,
    most_points: int = 1 << 17,
) -> Search:
    """``first``: what is tried first. Exhaustive if no more than ``limit`` points are possible."""
    first = list({pairs(c): c for c in first}.values())
    known = {pairs(c) for c in first}
    points: list[Config] = list(first)
    for values in itertools.islice(itertools.product(*space.values()), most_points):
        point = dict(zip(space, values, strict=True))
        if pairs(point) not in known and possible(point):
            points.append(point)
            if len(points) > limit:
                break
    else:
        return Exhaustive(points)
    return Sampler(space, first, limit, seed, possible)


def spread(points: Sequence[Config], count: int, seed: int) -> list[Config]:
    """``count`` of ``points``, at random."""
    return random.Random(seed).sample(list(points), min(count, len(points)))


def pairs(config: Config) -> Pairs:
    return tuple(sorted(config.items()))

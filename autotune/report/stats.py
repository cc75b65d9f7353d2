"""What a report says about many numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeVar

T = TypeVar("T")


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation of pairs, ties at their mean rank; None if there are fewer than 3 or one side is constant."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return statistics.correlation(ranks(a), ranks(b))


def ranks(values: Sequence[float]) -> list[float]:
    """From 1 on; equal values share the mean of their ranks."""
    out = [0.0] * len(values)
    start = 1
    for _, tied in groupby(sorted(range(len(values)), key=values.__getitem__), key=values.__getitem__):
        same = list(tied)
        for i in same:
            out[i] = start + (len(same) - 1) / 2
        start += len(same)
    return out


def explained(groups: Sequence[Sequence[float]]) -> float:
    """Share of the variance of all logarithms that lies between the groups (correlation ratio, squared), 0 to 1."""
    logs = [[math.log(v) for v in g] for g in groups if g]
    everything = [v for g in logs for v in g]
    if len(everything) < 2:
        return 0.0
    mean = statistics.fmean(everything)
    total = math.fsum((v - mean) ** 2 for v in everything)
    between = math.fsum(len(g) * (statistics.fmean(g) - mean) ** 2 for g in logs)
    return min(between / total, 1.0) if total > 0 else 0.0


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Of at least one value, interpolated between neighbours."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def geometric_mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.geometric_mean(found) if found else None


def thinned(values: Sequence[T], most: int, keep: Callable[[T], bool] = lambda value: False) -> list[T]:
    """At most about ``most`` of ``values`` in their order: those to ``keep``, and of the rest every n-th."""
    if len(values) <= most:
        return list(values)
    kept = sum(map(keep, values))
    step = max(math.ceil((len(values) - kept) / max(most - kept, 1)), 1)
    rest = 0
    out = []
    for value in values:
        if keep(value):
            out.append(value)
        else:
            if rest % step == 0:
                out.append(value)
            rest += 1
    return out

"""Axes of a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
_FEWEST, _MOST = 3, 7


@dataclass(frozen=True)
class Axis:
    """``low`` at pixel ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = True

    @property
    def line(self) -> tuple[float, float]:
        """(a, b): the pixel of v is a + b f(v), where f is log10 or nothing."""
        low, high = self._f(self.low), self._f(self.high)
        b = (self.end - self.start) / (high - low)
        return self.start - b * low, b

    def at(self, value: float) -> float:
        a, b = self.line
        return a + b * self._f(value)

    def ticks(self) -> list[float]:
        """Round values between the ends, a few."""
        if not self.log:
            return linear_ticks(self.low, self.high)
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in _STEPS:
            values = [s * 10.0**p for p in range(low, high + 1) for s in steps]
            found = [v for v in values if self.low <= v <= self.high]
            if len(found) >= _FEWEST:
                return found[:: -(-len(found) // _MOST)]
        return linear_ticks(self.low, self.high)

    def _f(self, value: float) -> float:
        return math.log10(value) if self.log else value


def linear_ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 5)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def log_axis(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis that holds ``values``, all above 0, with some room at the ends."""
    found = list(values) or [1.0]
    low, high = min(found), max(found)
    room = max((high / low) ** 0.05, 1.03)
    return Axis(low / room, high * room, start, end)

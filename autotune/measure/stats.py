"""Times of one thing: what to say of them, and when two of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

TIE = 0.02
"""Times that differ by less, of the smaller one, count as the same: processes differ by as much."""
_NORMAL = 1.2816
"""The 90th percentile of the standard normal distribution."""


def median(times: Sequence[float]) -> float:
    return float(np.median(times))


def quantiles(times: Sequence[float]) -> tuple[float, float, float]:
    """10th percentile, median, 90th percentile."""
    low, middle, high = (float(v) for v in np.percentile(times, [10, 50, 90]))
    return low, middle, high


def margin(times: Sequence[float]) -> float:
    """Half of the 95 % interval of the median: 1.96 sqrt(pi / 2) sigma / sqrt(n), sigma from the percentiles, so that
    a few outliers do not count."""
    low, _, high = quantiles(times)
    return 1.96 * sqrt(np.pi / 2) * (high - low) / (2 * _NORMAL) / sqrt(len(times))


def apart(fast: float, slow: float, margins: tuple[float, float]) -> bool:
    """``slow`` is slower by more than chance and more than `TIE`."""
    return slow - fast > max(TIE * fast, sqrt(margins[0] ** 2 + margins[1] ** 2))

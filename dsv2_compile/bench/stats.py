"""A measured quantity: not one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile, and least and largest of ``samples`` measurements."""

    median: float
    p10: float
    p90: float
    least: float
    most: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """ValueError for no values: there is nothing to report then."""
        if not values:
            raise ValueError("no measurements")
        p10, median, p90 = (float(v) for v in np.percentile(values, [10, 50, 90]))
        return cls(median, p10, p90, float(min(values)), float(max(values)), len(values))

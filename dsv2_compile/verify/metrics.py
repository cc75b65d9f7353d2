"""How far results are from the oracle's. numpy only, so that an engine is checked without torch.

Rows are the unit: one row is the logits of one position, or one cache row of one layer. Figures over a
set of rows are taken at the 95th percentile, so that one ill-conditioned token does not decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Errors:
    """Error of a set of rows. ``angle`` is the arc cosine of ``cosine_p5``, radians, linear in small errors.

    ``scale`` is the median of |actual| / |expected|, ``largest`` the largest |expected|: ``max_abs`` is
    read against it. Rows holding a NaN or an infinity are counted and left out of the other figures.
    """

    rows: int
    rel_l2_p95: float
    cosine_p5: float
    angle: float
    max_abs: float
    scale: float
    largest: float
    nan: int
    inf: int


def errors(actual: Array, expected: Array) -> Errors:
    """``actual`` and ``expected`` [N, D], N >= 1, padding already left out; computed in fp64."""
    if actual.shape != expected.shape or actual.ndim != 2 or not actual.size:
        raise ValueError(f"cannot compare {actual.shape} with {expected.shape}")
    nan, inf = int(np.isnan(actual).sum()), int(np.isinf(actual).sum())
    good = np.isfinite(actual).all(1)
    largest = float(np.abs(expected).max())
    if not good.any():
        return Errors(len(actual), np.inf, 0.0, np.pi / 2, np.inf, np.inf, largest, nan, inf)
    a, b = actual[good].astype(np.float64), expected[good].astype(np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.maximum(np.linalg.norm(b, axis=1), np.finfo(np.float64).tiny)
    delta = a - b
    along = np.einsum("nd,nd->n", a, b) / norm_b
    # From the perpendicular part of the difference: 1 - cosine would cancel below 1e-8.
    across = np.linalg.norm(delta - (np.einsum("nd,nd->n", delta, b) / norm_b**2)[:, None] * b, axis=1)
    angle = upper(np.arctan2(across, along))
    return Errors(
        rows=len(actual),
        rel_l2_p95=upper(np.linalg.norm(delta, axis=1) / norm_b),
        cosine_p5=float(np.cos(angle)),
        angle=angle,
        max_abs=float(np.abs(delta).max()),
        scale=float(np.median(norm_a / norm_b)),
        largest=largest,
        nan=nan,
        inf=inf,
    )


def upper(values: Array) -> float:
    """The 95th percentile; an actual sample, the next one up, never an average of two."""
    return float(np.quantile(values, 0.95, method="higher"))


@dataclass(frozen=True)
class Top1:
    """Agreement on the most likely token, split by the oracle's margin over its second choice.

    ``stable`` rows have a margin above twice the tolerance: no result within tolerance can differ there.
    """

    stable: int
    stable_agree: int
    unstable: int
    unstable_agree: int


def top1(actual: Array, expected: Array, tolerance: float) -> Top1:
    """``actual``, ``expected`` [N, V] logits; ``tolerance`` absolute, for one logit."""
    order = np.sort(expected, axis=1)
    stable = order[:, -1] - order[:, -2] > 2 * tolerance
    agree = actual.argmax(1) == expected.argmax(1)
    return Top1(int(stable.sum()), int((agree & stable).sum()), int((~stable).sum()), int((agree & ~stable).sum()))

"""How far results are from the oracle's. numpy only, so that an engine is checked without torch.

Rows are the unit: one row is the logits of one position, or one cache row of one layer. Figures over a
set of rows are taken at the 95th percentile, so that one ill-conditioned token does not decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
FIGURES = ("rel_l2_p95", "angle", "max_abs")


@dataclass(frozen=True)
class Figures:
    """Error of a set of rows. ``angle``, in radians, is the arc cosine of the 5th percentile of the cosines:
    linear in small errors, where the cosine is not."""

    rel_l2_p95: float
    angle: float
    max_abs: float


@dataclass(frozen=True)
class Errors(Figures):
    """``cosine_p5`` is the cosine of ``angle``, ``scale`` the median of |actual| / |expected|, ``largest`` the largest
    |expected|: ``max_abs`` is read against it. Rows holding a NaN or an infinity are counted and left out of the
    other figures."""

    rows: int
    cosine_p5: float
    scale: float
    largest: float
    nan: int
    inf: int


def row_errors(actual: Array, expected: Array) -> Array:
    """[N, D], [N, D] -> [3, N]: relative L2 difference, angle between the two, largest difference, in fp64."""
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    norm = np.maximum(np.linalg.norm(b, axis=1), np.finfo(np.float64).tiny)
    delta = a - b
    # From the perpendicular part of the difference: 1 - cosine would cancel below 1e-8.
    across = np.linalg.norm(delta - (np.einsum("nd,nd->n", delta, b) / norm**2)[:, None] * b, axis=1)
    angle = np.arctan2(across, np.einsum("nd,nd->n", a, b) / norm)
    return np.array([np.linalg.norm(delta, axis=1) / norm, angle, np.abs(delta).max(1)])


def figures(rows: Array) -> Figures:
    """Of ``row_errors`` [3, N], N >= 1."""
    return Figures(upper(rows[0]), upper(rows[1]), float(rows[2].max()))


def errors(actual: Array, expected: Array) -> Errors:
    """``actual`` and ``expected`` [N, D], N >= 1, padding already left out."""
    if actual.shape != expected.shape or actual.ndim != 2 or not actual.size:
        raise ValueError(f"cannot compare {actual.shape} with {expected.shape}")
    nan, inf = int(np.isnan(actual).sum()), int(np.isinf(actual).sum())
    good = np.isfinite(actual).all(1)
    largest = float(np.abs(expected).max())
    if not good.any():
        return Errors(np.inf, np.pi / 2, np.inf, len(actual), 0.0, np.inf, largest, nan, inf)
    a, b = actual[good].astype(np.float64), expected[good].astype(np.float64)
    norms = np.maximum(np.linalg.norm(b, axis=1), np.finfo(np.float64).tiny)
    scale = float(np.median(np.linalg.norm(a, axis=1) / norms))
    f = figures(row_errors(a, b))
    return Errors(f.rel_l2_p95, f.angle, f.max_abs, len(actual), float(np.cos(f.angle)), scale, largest, nan, inf)


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

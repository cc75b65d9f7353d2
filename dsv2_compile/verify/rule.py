"""The rule: an engine passes iff its error is at most 1.5 x e0 + eps, at every layer and for the logits.

e0 is the error of the eager model in the engine's dtype. It carries what the model itself does to rounding
errors (conditioning, depth, length of sums). It is a noise: an engine that adds the same sums in another order is
another sample of it, and one row of one run is off by half or by three times what it is off by on average. So the
eager model is run several times (see oracle.noise), and its figures are compared with like figures:

* Typical: over all rows of a layer that one program gave, error / (1.5 x e0 + eps) is at most 1 in the root mean
  square, e0 being the root mean square over the eager runs, row by row. Averaged over a hundred rows the noise
  of a right engine is known within a fifth.
* Worst: on every path, the 95th percentile, the angle and the largest difference are at most
  1.5^2 x spread x e0 + eps. ``spread`` is how far one eager run was, at most and anywhere, above the others; 1.5 a
  second time, because of a noise with such a tail the farthest of a few thousand rows is known no better.

With one run for e0 and a bare 1.5, half of all right engines of toy size fail; so, one in some thousands does.
eps is for what e0 cannot hold:

* eps = u x sqrt(R): an engine rounds values that eager mode does not (derived weights, merged products), and
  eager may have e0 = 0 by luck. u is the unit roundoff of the dtype; R counts the values stored on the way from
  the embedding to the probe, each rounded once. Independent roundings of relative size u add up to u x sqrt(R)
  in the mean square.

Nothing in it is fitted to an engine. A layer is probed through its cache rows: they depend on every layer
before it and on its own first norm and kv projection, on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.verify.metrics import FIGURES, Array, Errors, Figures

Mask = NDArray[np.bool_]
FACTOR = 1.5
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ROW_ROUNDINGS = 5
"""From hidden state to cache rows: norm, its product with the weight, projection, latent norm, its product."""
ATTENTION_ROUNDINGS = 11
"""Per layer: query projection, rotation, absorbed key and value weights, query in latent space, scores,
softmax, context, values, output projection, residual sum."""
LOW_RANK_ROUNDINGS = 3
"""With q_lora_rank: the projection down, its norm, and the norm's product with the weight."""
MLP_ROUNDINGS = 8
"""Per layer: norm, its product with the weight, gate, up, activation, their product, projection, residual sum."""
MOE_ROUNDINGS = 5
"""More with experts: router scores, softmax, weighting, sum over experts, sum with the shared ones."""
HEAD_ROUNDINGS = 3
"""Norm, its product with the weight, projection."""


def roundings(config: ModelConfig, layers: int) -> int:
    """Values stored from the embedding through ``layers`` whole layers."""
    attention = ATTENTION_ROUNDINGS + ROW_ROUNDINGS + (LOW_RANK_ROUNDINGS if config.q_lora_rank else 0)
    moe = sum(config.is_moe(i) for i in range(layers))
    return layers * (attention + MLP_ROUNDINGS) + moe * MOE_ROUNDINGS


def eps(config: ModelConfig, layer: int | None, dtype: str) -> float:
    """The relative allowance for the cache rows of ``layer``, or with None for the logits."""
    if layer is None:
        stored = roundings(config, config.num_hidden_layers) + HEAD_ROUNDINGS
    else:
        stored = roundings(config, layer) + ROW_ROUNDINGS
    return float(UNIT_ROUNDOFF[dtype] * stored**0.5)


@dataclass(frozen=True)
class Verdict:
    """One set of rows under the rule. ``limits`` and ``failed`` are keyed by the name of the figure."""

    error: Errors
    e0: Figures
    limits: dict[str, float]
    failed: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def ratio(self) -> float:
        """The figure nearest to its limit, or farthest over it, as a part of the limit."""
        return max(float(getattr(self.error, name)) / limit for name, limit in self.limits.items())


def tolerance(e0: Figures, spread: Figures, allowance: float, largest: float) -> dict[str, float]:
    """Limits on the figures; ``allowance`` is relative (eps), ``largest`` the largest value of the oracle."""
    limits = {name: FACTOR**2 * getattr(spread, name) * getattr(e0, name) + allowance for name in FIGURES}
    return limits | {"max_abs": limits["max_abs"] + allowance * (largest - 1)}


def judge(error: Errors, e0: Figures, spread: Figures, allowance: float) -> Verdict:
    limits = tolerance(e0, spread, allowance, error.largest)
    failed = [name for name, limit in limits.items() if not getattr(error, name) <= limit]
    if error.nan or error.inf:
        failed.append("nonfinite")
    return Verdict(error, e0, limits, tuple(failed))


def typical(error: Array, e0: Array, allowance: float) -> float:
    """Relative L2 errors of rows [N] and of eager mode there [N] -> the part of the limit that is used; inf for NaN."""
    ratio = float(np.sqrt(np.mean((error / (FACTOR * e0 + allowance)) ** 2)))
    return ratio if np.isfinite(ratio) else float("inf")


def eager_noise(runs: Array, pooled: Mask) -> Array:
    """Row errors [runs, 3, N] -> e0 [3, N], the root mean square over the runs.

    A row that the runs happened to get right is given that of the rows ``pooled`` bool [N], of all if there are none.
    """
    square = np.mean(runs**2, 0)
    pooled = pooled if pooled.any() else np.ones_like(pooled)
    return np.asarray(np.sqrt(np.maximum(square, square[:, pooled].mean(1, keepdims=True))))


def farthest(runs: Array, pooled: Mask) -> Array:
    """Row errors [runs, 3, N] -> [3]: the largest ratio of one run to the mean square of the others, on a row of
    ``pooled`` bool [N]; 1 if there are none. Pooled are rows no router flip can reach: a flip is no rounding."""
    rows = runs[:, :, pooled & np.isfinite(runs).all((0, 1))]
    if not rows.size or len(rows) < 2:
        return np.ones(3)
    others = (np.sum(rows**2, 0) - rows**2) / (len(rows) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(rows**2 / others)
    return np.asarray(np.nanmax(np.where(np.isfinite(ratio), ratio, 1.0), axis=(0, 2)))

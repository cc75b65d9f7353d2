"""The rule: an engine passes iff its error is at most 1.5 x e0 + eps, at every layer and for the logits.

e0 is the error of the eager model in the engine's dtype. It carries what the model itself does to rounding
errors (conditioning, depth, length of sums). It is a noise, and an engine that adds the same sums in another
order is another sample of it: per row the two differ by some times. So e0 is the worst of several eager runs
(see oracle.noise), and of the rows in question and all rows of the layer the larger figure. Then only two things
are left to allow:

* FACTOR = 1.5.
* eps = sqrt(u^2 R + a^2 D CHAIN / 6): an engine rounds values that eager mode does not (derived weights, merged
  products), adds in another order, and eager may have e0 = 0 by luck. u is the unit roundoff of the dtype; R counts
  the values stored on the way from the embedding to the probe, each rounded once: independent roundings of
  relative size u add up to u x sqrt(R) in the mean square. D counts the dot products on that way, a is the
  roundoff of their accumulator, fp32 or wider. A matrix kernel adds CHAIN products one after the other before it
  starts another accumulator; n random terms added so are off by a x sqrt(n / 6) relative to their sum
  (rounding i is uniform and as large as the partial sum, sqrt(i): sum of i/3 x a^2 over a sum of variance n).

Nothing in it is fitted to an engine. A layer is probed through its cache rows: they depend on every layer
before it and on its own first norm and kv projection, on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv2_compile.config import ModelConfig
from dsv2_compile.verify.metrics import FIGURES, Errors, Figures

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
CHAIN = 256
"""Products in one accumulator: CPU libraries cut the inner dim of a matrix product at 128 to 384."""
LAYER_SUMS = 9
"""Dot products in a row's way through a layer: query, latent kv, absorbed key, scores, context, values, output,
MLP in and out."""
ROW_SUMS = HEAD_SUMS = 1


def roundings(config: ModelConfig, layers: int) -> int:
    """Values stored from the embedding through ``layers`` whole layers."""
    attention = ATTENTION_ROUNDINGS + ROW_ROUNDINGS + (LOW_RANK_ROUNDINGS if config.q_lora_rank else 0)
    moe = sum(config.is_moe(i) for i in range(layers))
    return layers * (attention + MLP_ROUNDINGS) + moe * MOE_ROUNDINGS


def sums(config: ModelConfig, layers: int) -> int:
    """Dot products from the embedding through ``layers`` whole layers: with experts also the router's."""
    moe = sum(config.is_moe(i) for i in range(layers))
    return layers * (LAYER_SUMS + (config.q_lora_rank is not None)) + moe


def eps(config: ModelConfig, layer: int | None, dtype: str) -> float:
    """The relative allowance for the cache rows of ``layer``, or with None for the logits."""
    if layer is None:
        stored = roundings(config, config.num_hidden_layers) + HEAD_ROUNDINGS
        added = sums(config, config.num_hidden_layers) + HEAD_SUMS
    else:
        stored = roundings(config, layer) + ROW_ROUNDINGS
        added = sums(config, layer) + ROW_SUMS
    accumulator = min(UNIT_ROUNDOFF[dtype], UNIT_ROUNDOFF["float32"])
    return float((UNIT_ROUNDOFF[dtype] ** 2 * stored + accumulator**2 * added * CHAIN / 6) ** 0.5)


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


def tolerance(e0: Figures, allowance: float, largest: float) -> dict[str, float]:
    """Limits on the figures; ``allowance`` is relative (eps), ``largest`` the largest value of the oracle."""
    limits = {name: FACTOR * getattr(e0, name) + allowance for name in FIGURES}
    return limits | {"max_abs": FACTOR * e0.max_abs + allowance * largest}


def judge(error: Errors, e0: Figures, allowance: float) -> Verdict:
    limits = tolerance(e0, allowance, error.largest)
    failed = [name for name, limit in limits.items() if not getattr(error, name) <= limit]
    if error.nan or error.inf:
        failed.append("nonfinite")
    return Verdict(error, e0, limits, tuple(failed))

"""The rule: an engine passes iff its error is at most 1.5 x e0 + eps, at every layer and for the logits.

e0 is the error of the eager model in the engine's dtype, on the same rows. It carries what the model itself
does to rounding errors (conditioning, depth, length of sums), so only two things are left to allow:

* FACTOR = 1.5: another legitimate order of the same sums is another draw of the same noise.
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
from dsv2_compile.verify.metrics import Errors

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
    e0: Errors
    limits: dict[str, float]
    failed: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failed


def tolerance(e0: Errors, allowance: float) -> dict[str, float]:
    """Limits on rel_l2_p95, angle and max_abs; ``allowance`` is relative (eps)."""
    return {
        "rel_l2_p95": FACTOR * e0.rel_l2_p95 + allowance,
        "angle": FACTOR * e0.angle + allowance,
        "max_abs": FACTOR * e0.max_abs + allowance * e0.largest,
    }


def judge(error: Errors, e0: Errors, allowance: float) -> Verdict:
    limits = tolerance(e0, allowance)
    failed = [name for name, limit in limits.items() if not getattr(error, name) <= limit]
    if error.nan or error.inf:
        failed.append("nonfinite")
    return Verdict(error, e0, limits, tuple(failed))


def diagnosis(verdicts: dict[int | None, Verdict], config: ModelConfig) -> tuple[int | None, str] | None:
    """The first bad layer (None: only the logits are bad) and what feeds it; None if all is well.

    ``verdicts``: by layer, and under None the logits.
    """
    bad = next((i for i in range(config.num_hidden_layers) if i in verdicts and not verdicts[i].passed), None)
    if bad is None:
        if None not in verdicts or verdicts[None].passed:
            return None
        last = config.num_hidden_layers - 1
        where = f"layer {last} after its cache rows, the final norm or lm_head"
        return None, f"the rows of all layers are right, the logits are off{_how(verdicts[None])}: look at {where}"
    own = f"the input norm, kv projection, latent norm and rotation of layer {bad}"
    if bad == 0:
        return bad, f"rows of layer 0 are off{_how(verdicts[0])}: look at the embedding, or {own}"
    before = "experts" if config.is_moe(bad - 1) else "MLP"
    return bad, (
        f"rows of layer {bad} are off{_how(verdicts[bad])}, rows of layer {bad - 1} are right: look at layer "
        f"{bad - 1} after its cache rows (query, attention, output projection, {before}), or {own}"
    )


def _how(v: Verdict) -> str:
    if "nonfinite" in v.failed:
        return f" ({v.error.nan} NaN, {v.error.inf} infinite)"
    if "rel_l2_p95" in v.failed and "angle" not in v.failed:
        return f" (only in scale, x{v.error.scale:.7g})"
    worst = max(v.failed, key=lambda name: getattr(v.error, name) / max(v.limits[name], 1e-300))
    return f" ({worst} {getattr(v.error, worst):.2e}, limit {v.limits[worst]:.2e})"

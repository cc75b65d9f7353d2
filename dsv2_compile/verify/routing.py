"""Tells router flips from numeric error: which rows may depend on a choice that rounding can turn.

An engine does not show which experts it chose, so flips are not observed, they are predicted. The gap of a
token at a layer is how far, in router logits, the oracle's choice is from another one: last chosen expert
against the best one left out, and with groups last kept group against the best one left out. The noise is
what eager mode in the engine's dtype makes of these logits, the worst of its runs. A choice is *unstable* if
its gap is at most twice the error an engine may have under the rule: 2 x (1.5 x noise + eps x largest logit),
where the noise is the token's own or the layer's 95th percentile, whichever is larger.

An unstable choice touches every later layer of that token and, through attention, of the tokens after it.
These rows are judged apart; all others cannot depend on a flip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.verify.metrics import Array, upper
from dsv2_compile.verify.rule import FACTOR, eps


@dataclass(frozen=True)
class Routing:
    """``clean`` bool [layers + 1, N]: rows that no unstable choice can reach; the last line is the logits.

    ``choices``: token-layer pairs with a router; ``unstable`` of them, and ``flips`` that a run of eager mode turned.
    """

    clean: NDArray[np.bool_]
    choices: int
    unstable: int
    flips: int


def gaps(config: ModelConfig, logits: Array) -> Array:
    """logits [N, E] -> [N]; infinite where there is nothing to choose."""
    c = config
    if not c.grouped:
        return _gap(logits, c.num_experts_per_tok)
    groups = logits.reshape(len(logits), c.n_group, -1)
    best = groups.max(-1)
    kept = np.argsort(-best, axis=1, kind="stable")[:, : c.topk_group]
    inside = np.take_along_axis(groups, kept[:, :, None], 1).reshape(len(logits), -1)
    return np.minimum(_gap(best, c.topk_group), _gap(inside, c.num_experts_per_tok))


def _gap(scores: Array, kept: int) -> Array:
    if kept >= scores.shape[1]:
        return np.full(len(scores), np.inf)
    ordered = -np.sort(-scores, axis=1)
    return np.asarray(ordered[:, kept - 1] - ordered[:, kept])


def chosen(config: ModelConfig, logits: Array) -> NDArray[np.bool_]:
    """logits [N, E] -> which experts are chosen, bool [N, E]; ties go to the lowest index."""
    c = config
    scores = logits
    if c.grouped:
        groups = logits.reshape(len(logits), c.n_group, -1)
        kept = _top(groups.max(-1), c.topk_group)
        scores = np.where(kept[:, :, None], groups, -np.inf).reshape(logits.shape)
    return _top(scores, c.num_experts_per_tok)


def _top(scores: Array, k: int) -> NDArray[np.bool_]:
    out = np.zeros(scores.shape, bool)
    np.put_along_axis(out, np.argsort(-scores, axis=1, kind="stable")[:, :k], True, 1)
    return out


def analyse(
    config: ModelConfig,
    dtype: str,
    lengths: Sequence[int],
    oracle: Mapping[int, Array],
    noise: Mapping[int, Array],
    turned: Mapping[int, NDArray[np.bool_]],
) -> Routing:
    """By MoE layer, N = sum of ``lengths``, sequence by sequence: router logits [N, E] of the oracle, and of eager
    mode the largest error of a logit [N] and where it chose other experts [N]."""
    total = sum(lengths)
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    clean = np.ones((config.num_hidden_layers + 1, total), bool)
    unstable = flips = 0
    for layer in range(config.num_hidden_layers):
        clean[layer + 1] = clean[layer]
        if layer not in oracle or not clean[layer].any():
            continue
        logits = oracle[layer].astype(np.float64)
        worst = np.maximum(noise[layer], upper(noise[layer][clean[layer]]))
        limit = 2 * (FACTOR * worst + eps(config, layer + 1, dtype) * np.abs(logits).max(1))
        shaky = (gaps(config, logits) <= limit) & clean[layer]
        unstable += int(shaky.sum())
        flips += int((turned[layer] & shaky).sum())
        reached = np.cumsum(shaky)
        before = np.where(starts > 0, reached[starts - 1], 0)
        clean[layer + 1] &= reached == before
    return Routing(clean, total * len(oracle), unstable, flips)

"""The oracle: the eager reference, teacher-forced over whole sequences, one layer in memory at a time.

One causal pass serves prefill and decode alike: its row t depends on tokens 0..t only, so it is what a
decode step at t computes. Layers are the outer loop and sequences the inner one, every weight is read once,
and of the routed experts only those that some token chose, one at a time: memory is bounded by the dense
part of a layer, one expert, and lm_head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dsv2_compile.config import ModelConfig
from dsv2_compile.kernels.dialect import upcast
from dsv2_compile.model import reference
from dsv2_compile.verify.metrics import Array, row_errors
from dsv2_compile.verify.plan import Plan, synthetic
from dsv2_compile.verify.progress import Progress, silent
from dsv2_compile.verify.routing import chosen
from dsv2_compile.weights import Recipe, Stack, TensorSource

EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
DRAWS, FAR_DRAWS = 8, 2
"""Eager runs that e0 is the worst of; fewer of a sequence whose long prefix every run expands anew."""
JITTERED = 1 / 12
"""Part of the embedded values that a further run moves to a neighbouring number: to move one value in twelve by a
whole step adds the variance of one rounding, 1/12 of a step squared."""


@dataclass(frozen=True)
class Trace:
    """N = positions of all sequences, one after the other.

    ``rows`` [layers, N, C]; ``logits`` [probes, vocab] at the probed positions; ``router`` by MoE layer, the
    logits of the gate [N, E].
    """

    rows: Array
    logits: Array
    router: dict[int, Array]


@dataclass(frozen=True)
class Noise:
    """What eager mode is off by, the worst of its runs: ``rows`` [3, layers, N] and ``logits`` [3, probes] as
    `metrics.row_errors`, ``router`` by MoE layer, largest difference of a router logit [N], and ``turned`` bool [N],
    whether a run chose other experts."""

    rows: Array
    logits: Array
    router: dict[int, Array]
    turned: dict[int, NDArray[np.bool_]]


@dataclass(frozen=True)
class _Run:
    """Sequence ``sequence`` for the ``draw``-th time; its positions are ``at`` among those of all."""

    sequence: int
    draw: int
    at: slice


def run(
    config: ModelConfig, source: TensorSource, plan: Plan, dtype: torch.dtype, progress: Progress = silent
) -> Trace:
    """The sequences of ``plan``; ``progress(what, done, total)`` is called after every layer."""
    runs = [_run(plan, b, 0) for b in range(len(plan.tokens))]
    rows, router, logits = [], {}, np.empty(0)
    for i, new, gate in _layers(config, source, plan, runs, dtype, progress):
        if i is None:
            logits = np.concatenate(new)
            continue
        rows.append(np.concatenate(new))
        if gate is not None:
            router[i] = np.concatenate(gate)
    return Trace(np.stack(rows), logits, router)


def noise(
    config: ModelConfig,
    source: TensorSource,
    plan: Plan,
    dtype: torch.dtype,
    exact: Trace,
    progress: Progress = silent,
) -> Noise:
    """Eager mode in ``dtype`` against ``exact``: as it is, and from embeddings with one more rounding error.

    One run is one sample of a noise that varies by some times from row to row; a row of an engine is another.
    """
    far = set(range(len(plan.tokens))) - set(plan.near)
    runs = [_run(plan, b, k) for b in range(len(plan.tokens)) for k in range(FAR_DRAWS if b in far else DRAWS)]
    total = plan.offsets[-1]
    rows = np.zeros((3, config.num_hidden_layers, total))
    logits = np.zeros((3, len(plan.probes)))
    router: dict[int, Array] = {}
    turned: dict[int, NDArray[np.bool_]] = {}
    for i, new, gate in _layers(config, source, plan, runs, dtype, progress):
        for n, (r, values) in enumerate(zip(runs, new, strict=True)):
            if i is None:
                at = _probes(plan, r)
                logits[:, at] = np.maximum(logits[:, at], row_errors(values, exact.logits[at]))
                continue
            rows[:, i, r.at] = np.maximum(rows[:, i, r.at], row_errors(values, exact.rows[i, r.at]))
            if gate is None:
                continue
            off, other = router.setdefault(i, np.zeros(total)), turned.setdefault(i, np.zeros(total, bool))
            want = exact.router[i][r.at]
            off[r.at] = np.maximum(off[r.at], np.abs(gate[n] - want).max(1))
            other[r.at] |= (chosen(config, gate[n]) != chosen(config, want)).any(1)
    return Noise(rows, logits, router, turned)


def _run(plan: Plan, sequence: int, draw: int) -> _Run:
    return _Run(sequence, draw, slice(plan.offsets[sequence], plan.offsets[sequence + 1]))


def _probes(plan: Plan, r: _Run) -> list[int]:
    """Which of the probes lie in the sequence of ``r``."""
    return [i for i, p in enumerate(plan.probes) if r.at.start <= p < r.at.stop]


@torch.no_grad()
def _layers(
    config: ModelConfig,
    source: TensorSource,
    plan: Plan,
    runs: Sequence[_Run],
    dtype: torch.dtype,
    progress: Progress,
) -> Iterator[tuple[int | None, list[Array], list[Array] | None]]:
    """By layer: its number, the cache rows [S, C] of every run, their router logits [S, E] or None.
    At the end: None and the logits of the probed positions of every run. fp32 where ``dtype`` is narrower."""
    positions = max(past + n for past, n in zip(plan.past, plan.lengths, strict=True))
    table = reference.LazyWeights(source, config, dtype, positions)
    states, contexts = _embed(table, plan, runs)
    sizes = [x.shape[1] for x in states]
    what = f"{str(dtype).removeprefix('torch.')} reference"
    for i in range(config.num_hidden_layers):
        w = _dense_part(table, i)
        experts = [table.table[f"model.layers.{i}.{name}"] for name in EXPERTS] if config.is_moe(i) else None
        caches = {past: torch.from_numpy(synthetic(config, i, past)).to(dtype)[None] for past in set(plan.past)}
        out = [
            _attend(config, w, x, caches[plan.past[r.sequence]], ctx)
            for r, x, ctx in zip(runs, states, contexts, strict=True)
        ]
        flat = torch.cat([y for _, y, _ in out], 1)
        router = None
        if experts is None:
            added = reference.mlp(w, "mlp", flat)
        else:
            gate = w["mlp.gate.weight"]
            router = _numpy(F.linear(upcast(flat), upcast(gate))[0].split(sizes))
            ids, weights = reference.route(config, gate, flat)
            added = _routed(source, experts, dtype, flat[0], ids[0], weights[0])[None]
            if config.n_shared_experts:
                added = added + reference.mlp(w, "mlp.shared_experts", flat)
        states = [x + part for (x, _, _), part in zip(out, added.split(sizes, 1), strict=True)]
        progress(what, i + 1, config.num_hidden_layers)
        yield i, _numpy([new[0] for _, _, new in out]), router
    probed = [x[0, [plan.probes[i] - r.at.start for i in _probes(plan, r)]] for r, x in zip(runs, states, strict=True)]
    head = reference.head(config, {k: table[k] for k in ("model.norm.weight", "lm_head.weight")}, torch.cat(probed))
    yield None, _numpy(head.split([len(x) for x in probed])), None


def _embed(
    table: reference.LazyWeights, plan: Plan, runs: Sequence[_Run]
) -> tuple[list[Tensor], list[reference.Context]]:
    """Hidden states [1, S, D] and contexts by run, keeping only the embeddings that occur."""
    names, inverse = torch.unique(torch.tensor([t for s in plan.tokens for t in s]), return_inverse=True)
    raw = table.source.tensor("model.embed_tokens.weight")
    weights = {k: table[k] for k in ("rope.cos", "rope.sin")}
    weights["model.embed_tokens.weight"] = raw[names].to(table.dtype)
    once = [
        reference.embed(weights, ids[None], torch.tensor([past]), past)
        for ids, past in zip(inverse.split(plan.lengths), plan.past, strict=True)
    ]
    return [_jittered(once[r.sequence][0], r) for r in runs], [once[r.sequence][1] for r in runs]


def _jittered(x: Tensor, r: _Run) -> Tensor:
    """Draw 0 is ``x``; in the others some values, at random, are a neighbouring number instead."""
    if not r.draw:
        return x
    g = torch.Generator().manual_seed(1000 * r.sequence + r.draw)
    moved = torch.rand(x.shape, generator=g) < JITTERED
    up = torch.rand(x.shape, generator=g) < 0.5
    towards = torch.where(up, torch.inf, -torch.inf).to(x.dtype)
    return torch.where(moved, torch.nextafter(x, towards), x)


def _dense_part(table: reference.LazyWeights, layer: int) -> dict[str, Tensor]:
    view = reference.LayerWeights(table, layer)
    return {name: view[name] for name in view if name not in EXPERTS}


def _attend(
    config: ModelConfig, w: dict[str, Tensor], x: Tensor, cache: Tensor, ctx: reference.Context
) -> tuple[Tensor, Tensor, Tensor]:
    """The attention half of a layer: -> residual stream, input of the MLP, cache rows."""
    normed = reference.rms_norm(x, w["input_layernorm.weight"], config.rms_norm_eps)
    attn, rows = reference.attention(config, w, normed, cache, ctx)
    x = x + attn
    return x, reference.rms_norm(x, w["post_attention_layernorm.weight"], config.rms_norm_eps), rows


def _routed(
    source: TensorSource, experts: Sequence[Recipe], dtype: torch.dtype, x: Tensor, ids: Tensor, weights: Tensor
) -> Tensor:
    """x [N, D], ids and weights [N, k] -> [N, D]; each expert on the tokens that chose it."""
    out = weights.new_zeros(x.shape)
    for e in ids.unique().tolist():
        token, choice = (ids == e).nonzero(as_tuple=True)
        gate_up, down = (_expert(recipe, e).evaluate(source, dtype) for recipe in experts)
        gate, up = F.linear(x[token], gate_up).chunk(2, -1)
        out.index_add_(0, token, F.linear(F.silu(gate) * up, down) * weights[token, choice, None])
    return out.to(x.dtype)


def _expert(recipe: Recipe, index: int) -> Recipe:
    assert isinstance(recipe, Stack), "routed experts are stacked in the naive weight table"
    return recipe.parts[index]


def _numpy(parts: Sequence[Tensor]) -> list[Array]:
    return [upcast(x).numpy() for x in parts]

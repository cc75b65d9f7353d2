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
from dsv2_compile.progress import Progress, silent
from dsv2_compile.verify.metrics import Array, row_errors
from dsv2_compile.verify.plan import Plan, synthetic
from dsv2_compile.verify.routing import chosen
from dsv2_compile.weights import Recipe, Stack, TensorSource

EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
DRAWS = 12
"""Eager runs that e0 is the mean of."""
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
    """What eager mode is off by, run by run: ``rows`` [DRAWS, 3, layers, N] and ``logits`` [DRAWS, 3, probes] as
    `metrics.row_errors`; of all runs, by MoE layer, ``router``, the largest difference of a
    router logit [N], and ``turned`` bool [N], whether other experts were chosen."""

    rows: Array
    logits: Array
    router: dict[int, Array]
    turned: dict[int, NDArray[np.bool_]]


def run(
    config: ModelConfig, source: TensorSource, plan: Plan, dtype: torch.dtype, progress: Progress = silent
) -> Trace:
    """The sequences of ``plan``; ``progress(what, done, total)`` is called after every layer."""
    rows, router, logits = [], {}, np.empty(0)
    for i, new, gate in _layers(config, source, plan, 1, dtype, progress):
        if i is None:
            logits = np.concatenate(new, 1)[0]
            continue
        rows.append(np.concatenate(new, 1)[0])
        if gate is not None:
            router[i] = np.concatenate(gate, 1)[0]
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

    The error of one run is one sample of a noise, that of an engine another: it takes several to know its size.
    """
    rows = np.zeros((DRAWS, 3, config.num_hidden_layers, plan.offsets[-1]))
    logits = np.zeros((DRAWS, 3, len(plan.probes)))
    router, turned = {}, {}
    for i, new, gate in _layers(config, source, plan, DRAWS, dtype, progress):
        values = np.concatenate(new, 1)
        if i is None:
            logits[:] = [row_errors(v, exact.logits) for v in values]
            continue
        rows[:, :, i] = [row_errors(v, exact.rows[i]) for v in values]
        if gate is not None:
            scores, want = np.concatenate(gate, 1), exact.router[i]
            router[i] = np.abs(scores - want).max((0, 2))
            turned[i] = np.any([(chosen(config, s) != chosen(config, want)).any(1) for s in scores], axis=0)
    return Noise(rows, logits, router, turned)


@torch.no_grad()
def _layers(
    config: ModelConfig, source: TensorSource, plan: Plan, draws: int, dtype: torch.dtype, progress: Progress
) -> Iterator[tuple[int | None, list[Array], list[Array] | None]]:
    """By layer: its number, and by sequence the cache rows [draws, S, C] and the router logits [draws, S, E] or None.
    At the end: None and the logits [draws, probes of the sequence, V]. fp32 where ``dtype`` is narrower.

    The draws of a sequence stand one after the other as one sequence whose mask keeps them apart: so a weight is
    read, and a long prefix expanded, once for all.
    """
    positions = max(past + n for past, n in zip(plan.past, plan.lengths, strict=True))
    table = reference.LazyWeights(source, config, dtype, positions)
    states, contexts = _embed(table, plan, draws)
    sizes = [x.shape[1] for x in states]
    what = f"{str(dtype).removeprefix('torch.')} reference"

    def apart(parts: Sequence[Tensor]) -> list[Array]:
        return [_numpy(x.reshape(draws, -1, x.shape[-1])) for x in parts]

    for i in range(config.num_hidden_layers):
        w = _dense_part(table, i)
        experts = [table.table[f"model.layers.{i}.{name}"] for name in EXPERTS] if config.is_moe(i) else None
        caches = [torch.from_numpy(synthetic(config, i, past)).to(dtype)[None] for past in plan.past]
        out = [_attend(config, w, x, cache, ctx) for x, cache, ctx in zip(states, caches, contexts, strict=True)]
        flat = torch.cat([y for _, y, _ in out], 1)
        router = None
        if experts is None:
            added = reference.mlp(w, "mlp", flat)
        else:
            gate = w["mlp.gate.weight"]
            router = apart(F.linear(upcast(flat), upcast(gate)).split(sizes, 1))
            ids, weights = reference.route(config, gate, flat)
            added = _routed(source, experts, dtype, flat[0], ids[0], weights[0])[None]
            if config.n_shared_experts:
                added = added + reference.mlp(w, "mlp.shared_experts", flat)
        states = [x + part for (x, _, _), part in zip(out, added.split(sizes, 1), strict=True)]
        progress(what, i + 1, config.num_hidden_layers)
        yield i, apart([new for _, _, new in out]), router
    probed = []
    for x, start, stop in zip(states, plan.offsets, plan.offsets[1:], strict=False):
        at = [p - start for p in plan.probes if start <= p < stop]
        probed.append(x.reshape(draws, -1, x.shape[-1])[:, at].flatten(0, 1))
    head = reference.head(config, {k: table[k] for k in ("model.norm.weight", "lm_head.weight")}, torch.cat(probed))
    yield None, apart(head.split([len(x) for x in probed])), None


def _embed(table: reference.LazyWeights, plan: Plan, draws: int) -> tuple[list[Tensor], list[reference.Context]]:
    """By sequence hidden states [1, draws x S, D] and contexts, keeping only the embeddings that occur."""
    names, inverse = torch.unique(torch.tensor([t for s in plan.tokens for t in s]), return_inverse=True)
    raw = table.source.tensor("model.embed_tokens.weight")
    weights = {k: table[k] for k in ("rope.cos", "rope.sin")}
    weights["model.embed_tokens.weight"] = raw[names].to(table.dtype)
    states, contexts = [], []
    for ids, past in zip(inverse.split(plan.lengths), plan.past, strict=True):
        x, ctx = reference.embed(weights, ids[None], torch.tensor([past]), past)
        states.append(torch.cat([x, *(_jittered(x, k) for k in range(1, draws))], 1))
        old, new = ctx.visible[0].split([past, len(ids)], 1)
        visible = torch.cat((old.repeat(draws, 1), torch.block_diag(*[new] * draws)), 1)
        contexts.append(reference.Context(ctx.cos.repeat(1, draws, 1), ctx.sin.repeat(1, draws, 1), visible[None]))
    return states, contexts


def _jittered(x: Tensor, draw: int) -> Tensor:
    """``x`` with some values, at random, moved to a neighbouring number."""
    g = torch.Generator().manual_seed(draw)
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


def _numpy(x: Tensor) -> Array:
    out: Array = upcast(x).numpy()
    return out

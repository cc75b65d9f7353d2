"""The oracle: the eager reference, teacher-forced over whole sequences, one layer in memory at a time.

One causal pass serves prefill and decode alike: its row t depends on tokens 0..t only, so it is what a
decode step at t computes. Layers are the outer loop and sequences the inner one, every weight is read once,
and of the routed experts only those that some token chose, one at a time: memory is bounded by the dense
part of a layer, one expert, and lm_head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dsv2_compile.config import ModelConfig
from dsv2_compile.kernels.dialect import upcast
from dsv2_compile.model import reference
from dsv2_compile.verify.plan import Plan, synthetic
from dsv2_compile.verify.progress import Progress, silent
from dsv2_compile.weights import Recipe, Stack, TensorSource

EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


@dataclass(frozen=True)
class Trace:
    """N = positions of all sequences, one after the other.

    ``rows`` [layers, N, C]; ``logits`` [probes, vocab] at the probed positions; ``router`` by MoE layer, the
    logits of the gate [N, E]. All as fp64 or, for half types and fp32, as fp32: both hold the values exactly.
    """

    rows: NDArray[np.floating]
    logits: NDArray[np.floating]
    router: dict[int, NDArray[np.floating]]


@torch.no_grad()
def run(
    config: ModelConfig,
    source: TensorSource,
    plan: Plan,
    dtype: torch.dtype,
    progress: Progress = silent,
) -> Trace:
    """The sequences of ``plan``; ``progress(what, done, total)`` is called after every layer."""
    positions = max(past + n for past, n in zip(plan.past, plan.lengths, strict=True))
    table = reference.LazyWeights(source, config, dtype, positions)
    states, contexts = _embed(table, plan)
    rows, router = [], {}
    for i in range(config.num_hidden_layers):
        w = _dense_part(table, i)
        experts = [table.table[f"model.layers.{i}.{name}"] for name in EXPERTS] if config.is_moe(i) else None
        caches = [torch.from_numpy(synthetic(config, i, past)).to(dtype)[None] for past in plan.past]
        out = [_attend(config, w, x, cache, ctx) for x, cache, ctx in zip(states, caches, contexts, strict=True)]
        rows.append(torch.cat([new for _, _, new in out], 1)[0])
        flat = torch.cat([y for _, y, _ in out], 1)
        if experts is None:
            added = reference.mlp(w, "mlp", flat)
        else:
            gate = w["mlp.gate.weight"]
            router[i] = _numpy(F.linear(upcast(flat), upcast(gate))[0])
            ids, weights = reference.route(config, gate, flat)
            added = _routed(source, experts, dtype, flat[0], ids[0], weights[0])[None]
            if config.n_shared_experts:
                added = added + reference.mlp(w, "mlp.shared_experts", flat)
        parts = added.split(plan.lengths, 1)
        states = [x + part for (x, _, _), part in zip(out, parts, strict=True)]
        progress(f"{str(dtype).removeprefix('torch.')} reference", i + 1, config.num_hidden_layers)
    probed = torch.cat(states, 1)[0, torch.tensor(plan.probes)]
    return Trace(_numpy(torch.stack(rows)), _numpy(reference.head(config, table, probed)), router)


def _embed(table: reference.LazyWeights, plan: Plan) -> tuple[list[Tensor], list[reference.Context]]:
    """Hidden states [1, S, D] and contexts by sequence, reading only the embeddings that occur."""
    names, inverse = torch.unique(torch.tensor([t for s in plan.tokens for t in s]), return_inverse=True)
    raw = table.source.tensor("model.embed_tokens.weight")
    weights = {k: table[k] for k in ("rope.cos", "rope.sin")}
    weights["model.embed_tokens.weight"] = raw[names].to(table.dtype)
    pairs = [
        reference.embed(weights, ids[None], torch.tensor([past]), past)
        for ids, past in zip(inverse.split(plan.lengths), plan.past, strict=True)
    ]
    return [x for x, _ in pairs], [ctx for _, ctx in pairs]


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


def _numpy(x: Tensor) -> NDArray[np.floating]:
    out: NDArray[np.floating] = upcast(x).numpy()
    return out

"""The oracle: the eager reference, teacher-forced over whole sequences, one layer in memory at a time.

One causal pass serves prefill and decode alike: its row t depends on tokens 0..t only, so it is what a
decode step at t computes. Layers are the outer loop and sequences the inner one, every weight is read once,
and of the routed experts only those that some token chose, one at a time: memory is bounded by the dense
part of a layer, one expert, and lm_head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dsv2_compile.config import ModelConfig
from dsv2_compile.kernels.dialect import upcast
from dsv2_compile.model import reference
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
    sequences: Sequence[Sequence[int]],
    probes: Sequence[int],
    dtype: torch.dtype,
    progress: Callable[[str, int, int], None] | None = None,
) -> Trace:
    """``probes``: flat positions (0..N-1) whose logits are wanted. ``progress(what, done, total)`` per layer."""
    table = reference.LazyWeights(source, config, dtype, max(map(len, sequences)))
    states, contexts = _embed(table, sequences)
    rows, router = [], {}
    for i in range(config.num_hidden_layers):
        w = _dense_part(table, i)
        experts = [table.table[f"model.layers.{i}.{name}"] for name in EXPERTS] if config.is_moe(i) else None
        out = [_layer(config, w, x, ctx) for x, ctx in zip(states, contexts, strict=True)]
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
        parts = added.split([x.shape[1] for x in states], 1)
        states = [x + part for (x, _, _), part in zip(out, parts, strict=True)]
        if progress:
            progress(f"{str(dtype).removeprefix('torch.')} reference, layers", i + 1, config.num_hidden_layers)
    probed = torch.cat(states, 1)[0, torch.tensor(probes)]
    return Trace(_numpy(torch.stack(rows)), _numpy(reference.head(config, table, probed)), router)


def _embed(
    table: reference.LazyWeights, sequences: Sequence[Sequence[int]]
) -> tuple[list[Tensor], list[reference.Context]]:
    """Hidden states [1, S, D] and contexts by sequence, reading only the embeddings that occur."""
    names, inverse = torch.unique(torch.tensor([t for s in sequences for t in s]), return_inverse=True)
    raw = table.source.tensor("model.embed_tokens.weight")
    weights = {k: table[k] for k in ("rope.cos", "rope.sin")} | {
        "model.embed_tokens.weight": raw[names].to(table.dtype)
    }
    past = torch.zeros(1, dtype=torch.int64)
    pairs = [
        reference.embed(weights, part[None], past, 0) for part in inverse.split([len(s) for s in sequences])
    ]
    return [x for x, _ in pairs], [ctx for _, ctx in pairs]


def _dense_part(table: reference.LazyWeights, layer: int) -> dict[str, Tensor]:
    view = reference.LayerWeights(table, layer)
    return {name: view[name] for name in view if name not in EXPERTS}


def _layer(
    config: ModelConfig, w: dict[str, Tensor], x: Tensor, ctx: reference.Context
) -> tuple[Tensor, Tensor, Tensor]:
    """The attention half of a layer: -> residual stream, input of the MLP, cache rows."""
    empty = x.new_zeros(1, 0, config.cache_dim)
    normed = reference.rms_norm(x, w["input_layernorm.weight"], config.rms_norm_eps)
    attn, rows = reference.attention(config, w, normed, empty, ctx)
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

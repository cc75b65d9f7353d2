"""Causal attention over keys and values per head, for new tokens after a cached prefix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu import work_attention
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Grid, Kernel, Sizes, next_power_of_2, register
from dsv2_compile.kernels.gpu.source import mla_prefill as source
from dsv2_compile.kernels.gpu.work import Work
from dsv2_compile.plan.expr import cdiv
from dsv2_compile.targets import Target


def _constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    blocks = {f"{name}_BLOCK": max(16, next_power_of_2(int(dims[name]))) for name in ("NOPE", "ROPE", "V")}
    return {
        **{name: dims[name] for name in ("HEADS", "NOPE", "ROPE", "V", "LATENT", "Q_ROW")},
        "SCALE": float(dims["SCALE"]) * math.log2(math.e),
        "BATCH_BLOCK": next_power_of_2(int(dims["MAX_BATCH"])),
        **blocks,
        "BLOCK_M": config["BLOCK_M"],
        "BLOCK_N": config["BLOCK_N"],
    }


def _grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (cdiv(sizes["rows"], config["BLOCK_M"]) + sizes["batch"], int(dims["HEADS"]))


_WARPGROUP: Config = {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3}
_WARP: Config = {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "num_stages": 3}
_SMALL_SHARED: Config = {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}


def _default(dims: Dims, target: Target) -> Config:
    arch = target.architecture
    if not arch.large_shared:
        return _SMALL_SHARED
    return _WARPGROUP if arch.shared_operands else _WARP


def _reference(
    dims: Dims,
    sizes: Mapping[str, int],
    q: torch.Tensor,
    kv: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    query_start: torch.Tensor,
    context_start: torch.Tensor,
) -> dict[str, Any]:
    heads, nope, rope, v, latent = (int(dims[name]) for name in ("HEADS", "NOPE", "ROPE", "V", "LATENT"))
    query = q[:, : heads * (nope + rope)].unflatten(-1, (heads, -1))
    per_head = kv.to(q.dtype).view(-1, heads, nope + v)
    shared = cache[slots.long(), None, latent:].to(q.dtype).expand(-1, heads, -1)
    key, value = torch.cat((per_head[..., :nope], shared), -1), per_head[..., nope:]
    out = torch.empty(sizes["rows"], heads, v, dtype=q.dtype)
    for b in range(sizes["batch"]):
        new = slice(int(query_start[b]), int(query_start[b + 1]))
        seen = slice(int(context_start[b]), int(context_start[b + 1]))
        scores = torch.einsum("shd,thd->hst", query[new], key[seen]) * float(dims["SCALE"])
        n, m = scores.shape[1:]
        hidden = torch.ones(n, m, dtype=torch.bool).triu(m - n + 1)
        p = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[new] = torch.einsum("hst,thv->shv", p, value[seen])
    return {"out": out.flatten(1)}


def _cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    heads, nope, rope, v = (int(dims[name]) for name in ("HEADS", "NOPE", "ROPE", "V"))
    rows, context, batch = sizes["rows"], sizes["context"], sizes["batch"]
    width = nope + rope + v
    pairs = rows * (2 * context - rows + batch) // (2 * batch)
    return Cost(2 * heads * width * rows + 2 * context * (heads * (nope + v) + rope), 2 * heads * pairs * width)


def _work(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
    c = _constants(dims, config)
    return work_attention.prefill(dims, config, sizes, *(int(c[f"{n}_BLOCK"]) for n in ("NOPE", "ROPE", "V")))


MLA_PREFILL = register(
    Kernel(
        name="mla_prefill",
        fn=source.mla_prefill,
        args={
            "q": "*T",
            "kv": "*T",
            "cache": "*T",
            "slots": "*i32",
            "query_start": "*i32",
            "context_start": "*i32",
            "out": "*T",
            "rows": "i32",
            "batch": "i32",
        },
        outputs=("out",),
        constants=_constants,
        grid=_grid,
        space={"BLOCK_M": (64, 128), "BLOCK_N": (32, 64, 128), "num_warps": (4, 8), "num_stages": (1, 2, 3, 4)},
        default=_default,
        reference=_reference,
        cost=_cost,
        work=_work,
        shape=("rows", "batch", "context"),
        roundings={"out": 2},
    )
)
"""out [rows, HEADS * V] = softmax(q k^T * SCALE) v. q [rows, Q_ROW], rotated, NOPE + ROPE values per head, heads
adjacent; kv [context rows, HEADS * (NOPE + V)], for every head NOPE key values, then V; the other ROPE values of every
head's key are the last of cache row slots[t], cache [slots, LATENT + ROPE]. Sequence b is the queries query_start[b] to
query_start[b + 1] and the context rows context_start[b] to context_start[b + 1]; its queries stand at the end of its
context and see themselves and what is before them. No sequence has more queries than context rows; one without queries
is left out. dims: HEADS, NOPE, ROPE, V, LATENT, Q_ROW, SCALE (positive), MAX_BATCH (largest batch). sizes: rows, batch;
for the cost also context (context rows of all sequences together; the FLOP are those of sequences of equal length).
The defaults are for two-byte types."""

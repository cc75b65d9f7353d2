"""The routed experts over sorted entries: gate and up with SwiGLU, down, and the sum over a token's experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu.kernel import (
    Config,
    Dims,
    Grid,
    Kernel,
    Sizes,
    next_power_of_2,
    register,
    rows_hint,
    without_hint,
)
from dsv2_compile.kernels.gpu.source import moe as source
from dsv2_compile.kernels.gpu.tiles import Product, tiles
from dsv2_compile.kernels.gpu.work_linear import expected_experts, experts
from dsv2_compile.kernels.gpu.work_rows import summed
from dsv2_compile.kernels.ops.linear import swiglu
from dsv2_compile.plan.expr import cdiv, minimum
from dsv2_compile.targets import Target

_FEW = ((16, 16, 128, 128, 4), (40, 32, 128, 128, 4))
_WARPGROUP = (*_FEW, (96, 64, 256, 64, 8), (1 << 31, 128, 256, 64, 8))
_WARP = (*_FEW, (96, 64, 128, 64, 4), (1 << 31, 128, 128, 32, 8))
"""Up to so many tokens per expert on average: BLOCK_M, columns over all matrices, BLOCK_K, num_warps. For GPUs whose
matrix instructions take operands from shared memory, and for the others. Guesses after published tables of fused MoE
kernels, none was timed."""

_SPACE = {
    "BLOCK_M": (1, 16, 32, 64, 128),
    "BLOCK_N": (2, 4, 8, 16, 32, 64, 128, 256),
    "BLOCK_K": (32, 64, 128, 256, 512, 1024),
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4, 5),
}


def _constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {
        **without_hint(dims),
        **{name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")},
        "SWAP": 1 < config["BLOCK_M"] < 64 <= config["BLOCK_N"],
        "EXPERTS_BLOCK": next_power_of_2(int(dims["EXPERTS"])),
    }


def _grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    entries = sizes["rows"] * int(dims["TOP_K"])
    tiles_m = minimum(entries, cdiv(entries, config["BLOCK_M"]) + int(dims["EXPERTS"]))
    return (tiles_m * cdiv(int(dims["N"]), config["BLOCK_N"]),)


def _default(weights: int) -> Callable[[Dims, Target], Config]:
    """``weights``: matrices that one tile of x is multiplied with."""

    def default(dims: Dims, target: Target) -> Config:
        rows, n, k = rows_hint(dims), int(dims["N"]), int(dims["K"])
        if rows == 1:
            one = tiles(Product(1, n, k, weights), target)
            return {name: one[name] for name in _SPACE}
        tokens = rows * int(dims["TOP_K"]) / int(dims["EXPERTS"])
        in_place = target.architecture.shared_operands
        table = _WARPGROUP if in_place else _WARP
        block_m, columns, block_k, warps = next(tile for most, *tile in table if tokens <= most)
        block_n = min(columns // weights, max(16, next_power_of_2(n)))
        block_k = min(block_k, max(16, next_power_of_2(k)))
        stage = 2 * block_k * (block_m + block_n * weights)
        # else the tile in use is in registers, not in a buffer
        fit = target.architecture.shared_per_block // stage + (not in_place)
        return {
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
            "num_warps": warps,
            "num_stages": max(1, min(3 if block_m < 64 else 4, fit)),
        }

    return default


def _cost(weights: int, streams: Callable[[int, int, int, int], int]) -> Callable[[Dims, Mapping[str, int]], Cost]:
    """``streams(rows, entries, N, K)``: elements of activations read and written. The size ``experts``: how many are
    hit, if that is known, else what uniform routing hits."""

    def cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
        rows, n, k = sizes["rows"], int(dims["N"]), int(dims["K"])
        entries = rows * int(dims["TOP_K"])
        matrix = weights * n * k
        indices = 4 * (entries + int(dims["EXPERTS"]) + 1)
        hit = sizes.get("experts") or expected_experts(dims, rows)
        moved = 2 * (streams(rows, entries, n, k) + round(hit * matrix)) + indices
        return Cost(moved, 2 * entries * matrix)

    return cost


def _per_expert(w: torch.Tensor, offsets: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x [entries, K] in the order of the experts -> [entries, rows of w]. w in any dtype, for it may be large."""
    used = [(e, a, b) for e, (a, b) in enumerate(pairwise(offsets.tolist())) if a < b]
    return torch.cat([x[a:b] @ w[e].to(x.dtype).T for e, a, b in used])


def _up(
    dims: Dims,
    sizes: Mapping[str, int],
    x: torch.Tensor,
    w: torch.Tensor,
    offsets: torch.Tensor,
    order: torch.Tensor,
) -> dict[str, Any]:
    return {"out": swiglu(_per_expert(w, offsets, x[order.long() // int(dims["TOP_K"])]))}


def _down(
    dims: Dims,
    sizes: Mapping[str, int],
    x: torch.Tensor,
    w: torch.Tensor,
    offsets: torch.Tensor,
    order: torch.Tensor,
    weights: torch.Tensor,
) -> dict[str, Any]:
    y = _per_expert(w, offsets, x) * weights.flatten()[order.long(), None]
    return {"out": torch.empty_like(y).index_copy_(0, order.long(), y)}


MOE_UP = register(
    Kernel(
        name="moe_up",
        fn=source.moe_up,
        args={"x": "*T", "w": "*T", "offsets": "*i32", "order": "*i32", "out": "*T", "rows": "i32"},
        outputs=("out",),
        constants=_constants,
        grid=_grid,
        space=_SPACE,
        default=_default(2),
        reference=_up,
        cost=_cost(2, lambda rows, entries, n, k: rows * k + entries * n),
        work=experts(2, chain=4),
    )
)
"""out [rows * TOP_K, N], row p for entry order[p] of its expert e: silu(w[e][:N] x) * w[e][N:] x with x [rows, K] at
the entry's token, w [EXPERTS, 2 N, K]. offsets and order: of `dispatch`. dims: EXPERTS, TOP_K, N, K; ROWS_HINT, the
rows to expect, for `default` only: tokens per expert decide the tile.

The grid is one-dimensional and bounds what any routing needs; a program finds its expert in offsets, one beyond the
last tile ends there. An expert's programs are neighbours, those of one column tile next to each other.
"""

MOE_DOWN = register(
    Kernel(
        name="moe_down",
        fn=source.moe_down,
        args={
            "x": "*T",
            "w": "*T",
            "offsets": "*i32",
            "order": "*i32",
            "weights": "*fp32",
            "out": "*T",
            "rows": "i32",
        },
        outputs=("out",),
        constants=_constants,
        grid=_grid,
        space=_SPACE,
        default=_default(1),
        reference=_down,
        cost=_cost(1, lambda rows, entries, n, k: entries * (k + n + 2)),
        work=experts(1, chain=3),
    )
)
"""out [rows * TOP_K, N] at row order[p]: weights[order[p]] * w[e] x[p], with x [rows * TOP_K, K] from `moe_up`,
w [EXPERTS, N, K], weights fp32 [rows, TOP_K]. Everything else as in `moe_up`."""


def _combine(dims: Dims, sizes: Mapping[str, int], parts: torch.Tensor, shared: torch.Tensor | None) -> dict[str, Any]:
    total = parts.sum(1)
    return {"out": total if shared is None else total + shared}


def _combine_cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    terms = int(dims["TOP_K"]) + bool(dims["SHARED"])
    values = sizes["rows"] * int(dims["N"])
    return Cost(2 * values * (terms + 1), values * (terms - 1))


MOE_COMBINE = register(
    Kernel(
        name="moe_combine",
        fn=source.moe_combine,
        args={"parts": "*T", "shared": "*T", "out": "*T", "rows": "i32"},
        outputs=("out",),
        constants=lambda dims, config: {**dims, "BLOCK_N": config["BLOCK_N"]},
        grid=lambda dims, config, sizes: (sizes["rows"], cdiv(int(dims["N"]), config["BLOCK_N"])),
        space={"BLOCK_N": (256, 512, 1024, 2048, 4096), "num_warps": (1, 2, 4, 8), "num_stages": (1,)},
        default=lambda dims, target: {
            "BLOCK_N": min(1024, next_power_of_2(int(dims["N"]))),
            "num_warps": 4,
            "num_stages": 1,
        },
        reference=_combine,
        cost=_combine_cost,
        work=summed("BLOCK_N", lambda dims: int(dims["TOP_K"]) + bool(dims["SHARED"]), 2),
    )
)
"""out [rows, N] = the sum of parts [rows, TOP_K, N] over a token's experts, first to last, + shared [rows, N].
dims: N, TOP_K, SHARED (else shared is null)."""

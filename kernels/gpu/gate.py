"""The softmax gate with its group limit, from activations to expert ids and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu import work_linear
from dsv2_compile.kernels.gpu.kernel import (
    LONG_PREFILL,
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
from dsv2_compile.kernels.gpu.source import gate as source
from dsv2_compile.kernels.gpu.work import Work
from dsv2_compile.kernels.ops.moe import gate
from dsv2_compile.plan.expr import cdiv
from dsv2_compile.targets import Target

_TILE = 1 << 14
"""Elements of w in one step over K: 32 KiB in 2-byte types."""


def _blocks(dims: Dims) -> tuple[int, int]:
    """Columns of the kernel's tile as (groups, members of a group); tensor cores want 16 in all."""
    groups = next_power_of_2(int(dims["GROUPS"]))
    return groups, max(next_power_of_2(int(dims["EXPERTS"]) // int(dims["GROUPS"])), 16 // groups)


def _constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    groups, members = _blocks(dims)
    return {
        **without_hint(dims),
        "TOKENS": config["TOKENS"],
        "BLOCK_K": config["BLOCK_K"],
        "GROUPS_BLOCK": groups,
        "MEMBERS_BLOCK": members,
        "TOP_BLOCK": next_power_of_2(int(dims["TOP_K"])),
    }


def _grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (cdiv(sizes["rows"], config["TOKENS"]),)


def _default(dims: Dims, target: Target) -> Config:
    groups, members = _blocks(dims)
    columns = groups * members
    tokens = 32 if rows_hint(dims) >= LONG_PREFILL else 16
    block_k = max(32, min(128, _TILE // columns))
    return {
        "TOKENS": tokens,
        "BLOCK_K": block_k,
        "num_warps": 8 if columns > 64 else 4,
        # the tile in use is in registers, not in a buffer
        "num_stages": min(4, target.architecture.shared_per_block // (2 * block_k * (tokens + columns)) + 1),
    }


def _reference(dims: Dims, sizes: Mapping[str, int], x: torch.Tensor, w: torch.Tensor) -> dict[str, Any]:
    ids, weights = gate(
        x,
        w,
        int(dims["TOP_K"]),
        int(dims["GROUPS"]),
        int(dims["TOPK_GROUPS"]),
        float(dims["SCALE"]),
        bool(dims["NORMALIZE"]),
    )
    return {"ids": ids.int(), "weights": weights}


def _cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    rows, experts, k = sizes["rows"], int(dims["EXPERTS"]), int(dims["K"])
    return Cost(2 * k * (rows + experts) + 8 * rows * int(dims["TOP_K"]), 2 * rows * experts * k)


def _work(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
    groups, members = _blocks(dims)
    return work_linear.gate(dims, config, sizes, groups * members)


GATE = register(
    Kernel(
        name="gate",
        fn=source.gate,
        args={"x": "*T", "w": "*T", "ids": "*i32", "weights": "*fp32", "rows": "i32"},
        outputs=("ids", "weights"),
        constants=_constants,
        grid=_grid,
        space={"TOKENS": (16, 32, 64), "BLOCK_K": (32, 64, 128, 256), "num_warps": (4, 8), "num_stages": (2, 3, 4)},
        default=_default,
        reference=_reference,
        cost=_cost,
        work=_work,
    )
)
"""ids and weights [rows, TOP_K] of x [rows, K] under w [EXPERTS, K]: `kernels.ops.moe.gate`, ties included.

dims: EXPERTS, K, TOP_K, GROUPS (divides EXPERTS), TOPK_GROUPS, SCALE, NORMALIZE, and ROWS_HINT, which only
`default` reads: the rows to expect. Products of T summed in fp32 by the tensor cores, products of fp32 on the CUDA
cores; equal rows of w should give equal scores, bit for bit: seen on the host only. A row whose scores are NaN still
gets ids of experts.
"""

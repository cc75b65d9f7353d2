"""RMSNorm over rows, with the residual sum in the same pass."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Grid, Kernel, Sizes, next_power_of_2, register
from dsv2_compile.kernels.ops.norm import rms_norm
from dsv2_compile.targets import Target


@triton.jit
def _rms_norm(
    x, residual, index, weight, out, total, rows, N: tl.constexpr, X_STRIDE: tl.constexpr, EPS: tl.constexpr,
    RESIDUAL: tl.constexpr, INDEXED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    source = row
    if INDEXED:
        source = tl.load(index + row).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < N
    value = tl.load(x + source * X_STRIDE + at, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + source * N + at, mask=inside, other=0.0).to(tl.float32)
        stored = value.to(total.dtype.element_ty)
        tl.store(total + row * N + at, stored, mask=inside)
        value = stored.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / N + EPS)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * N + at, (value * scale * w).to(out.dtype.element_ty), mask=inside)


def _constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {**dims, "BLOCK": next_power_of_2(int(dims["N"]))}


def _grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (sizes["rows"],)


def _default(dims: Dims, target: Target) -> Config:
    return {"num_warps": 8 if dims["N"] > 2048 else 4, "num_stages": 1}


def _reference(
    dims: Dims, sizes: Sizes, x: torch.Tensor, residual: torch.Tensor, index: torch.Tensor, weight: torch.Tensor
) -> dict[str, Any]:
    n = int(dims["N"])
    source = index.long() if dims["INDEXED"] else torch.arange(int(sizes["rows"]))  # type: ignore[arg-type]
    value = x[source, :n]
    if not dims["RESIDUAL"]:
        return {"out": rms_norm(value, weight, float(dims["EPS"])), "total": None}
    value = value + residual[source]
    return {"out": rms_norm(value, weight, float(dims["EPS"])), "total": value}


def _cost(dims: Dims, sizes: Sizes) -> Cost:
    rows, n = sizes["rows"], int(dims["N"])
    streams = 4 if dims["RESIDUAL"] else 2
    return Cost(rows * (2 * n * streams) + 2 * n, rows * (5 * n))  # type: ignore[arg-type]


RMS_NORM = register(
    Kernel(
        name="rms_norm",
        fn=_rms_norm,
        args={
            "x": "*T",
            "residual": "*T",
            "index": "*i32",
            "weight": "*T",
            "out": "*T",
            "total": "*T",
            "rows": "i32",
        },
        outputs=("out", "total"),
        constants=_constants,
        grid=_grid,
        space={"num_warps": (1, 2, 4, 8, 16), "num_stages": (1,)},
        default=_default,
        reference=_reference,
        cost=_cost,
        roundings=2,
    )
)
"""out = RMSNorm(x + residual) * weight and total = x + residual, both [rows, N]. dims: N, X_STRIDE (elements
between rows of x), EPS, RESIDUAL (else residual and total are not touched), INDEXED (row r reads row index[r])."""

"""RMSNorm over rows, with the residual sum in the same pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu import work_rows
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Grid, Kernel, Sizes, next_power_of_2, register
from dsv2_compile.kernels.gpu.source import norm as source
from dsv2_compile.kernels.ops.norm import rms_norm
from dsv2_compile.targets import Target


def _constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {**dims, "BLOCK": next_power_of_2(int(dims["N"]))}


def _grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (sizes["rows"],)


def _default(dims: Dims, target: Target) -> Config:
    return {"num_warps": 8 if dims["N"] > 2048 else 4, "num_stages": 1}


def _reference(
    dims: Dims,
    sizes: Mapping[str, int],
    x: torch.Tensor,
    residual: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
) -> dict[str, Any]:
    n = int(dims["N"])
    source = index.long() if dims["INDEXED"] else torch.arange(sizes["rows"])
    value = x[source, :n]
    if not dims["RESIDUAL"]:
        return {"out": rms_norm(value, weight, float(dims["EPS"])), "total": None}
    value = value + residual[source]
    return {"out": rms_norm(value, weight, float(dims["EPS"])), "total": value}


def _cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    rows, n = sizes["rows"], int(dims["N"])
    streams = 4 if dims["RESIDUAL"] else 2
    return Cost(2 * n * (rows * streams + 1), 5 * rows * n)


RMS_NORM = register(
    Kernel(
        name="rms_norm",
        fn=source.rms_norm,
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
        work=work_rows.norm,
        roundings={"out": 2},
    )
)
"""out = RMSNorm(x + residual) * weight and total = x + residual, both [rows, N]. dims: N, X_STRIDE (elements
between rows of x), EPS, RESIDUAL (else residual and total are not touched), INDEXED (row r reads row index[r])."""

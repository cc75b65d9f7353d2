"""Rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu import work_rows
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Grid, Kernel, Sizes, next_power_of_2, register
from dsv2_compile.kernels.gpu.source import embedding as source
from dsv2_compile.plan.expr import cdiv
from dsv2_compile.targets import Target


def _constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {**dims, "BLOCK": config["BLOCK"]}


def _grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (sizes["rows"], cdiv(int(dims["N"]), config["BLOCK"]))


def _default(dims: Dims, target: Target) -> Config:
    return {"BLOCK": min(1024, next_power_of_2(int(dims["N"]))), "num_warps": 4, "num_stages": 1}


def _reference(dims: Dims, sizes: Mapping[str, int], tokens: torch.Tensor, table: torch.Tensor) -> dict[str, Any]:
    return {"out": torch.nn.functional.embedding(tokens, table)}


def _cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    return Cost(sizes["rows"] * (4 * int(dims["N"]) + 4), 0)


EMBEDDING = register(
    Kernel(
        name="embedding",
        fn=source.embedding,
        args={"tokens": "*i32", "table": "*T", "out": "*T", "rows": "i32"},
        outputs=("out",),
        constants=_constants,
        grid=_grid,
        space={"BLOCK": (256, 512, 1024, 2048, 4096), "num_warps": (1, 2, 4, 8), "num_stages": (1,)},
        default=_default,
        reference=_reference,
        cost=_cost,
        work=work_rows.embedding,
        roundings={"out": 0},
    )
)
"""out[r] = table[tokens[r]], [rows, N]; tokens i32 [rows] must be rows of table [vocab, N]. dims: N."""

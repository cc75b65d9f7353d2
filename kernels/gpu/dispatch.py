"""Entries (token, expert) sorted by expert: where each expert's tokens stand, without a second pass on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu import work_rows
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Grid, Kernel, Sizes, register, rows_hint, without_hint
from dsv2_compile.kernels.gpu.source import dispatch as source
from dsv2_compile.targets import Target


def sort_entries(ids: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [rows, TOP_K] -> offsets int32 [experts + 1] and order int32 [rows * TOP_K]."""
    flat = ids.flatten().long()
    counts = torch.bincount(flat, minlength=experts)
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return offsets.int(), flat.argsort(stable=True).int()


def _constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {**without_hint(dims), "BLOCK": config["BLOCK"]}


def _grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (int(dims["EXPERTS"]),)


def _default(dims: Dims, target: Target) -> Config:
    entries = rows_hint(dims) * int(dims["TOP_K"])
    return {"BLOCK": 1024 if entries <= 1024 else 4096, "num_warps": 4 if entries <= 1024 else 8, "num_stages": 1}


def _reference(dims: Dims, sizes: Mapping[str, int], ids: torch.Tensor) -> dict[str, Any]:
    offsets, order = sort_entries(ids, int(dims["EXPERTS"]))
    return {"offsets": offsets, "order": order}


def _cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    return Cost(8 * sizes["rows"] * int(dims["TOP_K"]) + 4 * (int(dims["EXPERTS"]) + 1), 0)


DISPATCH = register(
    Kernel(
        name="dispatch",
        fn=source.dispatch,
        args={"ids": "*i32", "offsets": "*i32", "order": "*i32", "rows": "i32"},
        outputs=("offsets", "order"),
        constants=_constants,
        grid=_grid,
        space={"BLOCK": (256, 512, 1024, 2048, 4096), "num_warps": (1, 2, 4, 8), "num_stages": (1,)},
        default=_default,
        reference=_reference,
        cost=_cost,
        work=work_rows.dispatch,
    )
)
"""order [rows * TOP_K]: entries token * TOP_K + j by ids [rows, TOP_K], then by number. offsets [EXPERTS + 1]: the
place in order where an expert's entries start. dims: EXPERTS, TOP_K; ROWS_HINT, for `default` only.

One program per expert reads all ids twice, counts those below its own and places its own by a running sum: no
atomics, no order of programs. Ids must be experts.
"""

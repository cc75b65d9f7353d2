"""Split of a decode step's attention over parts of equal work, and the merge of the parts' outputs.

`mla_schedule`, `mla_decode` and `mla_combine` agree through ``parts`` i32 [PARTS + 1, 5], written once a step, and
through the dims PAGE and PARTS; their configs are independent. The step's work is the list of all
(row, block of PAGE positions) in order; part p takes what lies between entry p and entry p + 1:

- parts[p, 0:2]: row and block at which part p begins; the last entry is (rows, 0). Part 0 begins at (0, 0), and a
  padding row belongs to the part whose rows enclose it.
- parts[p, 2]: partial outputs that end at or before that point. A piece that begins inside a row has this slot,
  a piece that ends inside a row the slot before that of the next part.
- parts[j, 3:5]: j-th row that is in several pieces, and the first of its slots, which end where those of entry
  j + 1 begin; (rows, all slots) once there are no more.

A row in one piece has no slot. Which rows share a step decides where they are cut, so a row's last bits do too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu import work_attention
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Grid, Kernel, Sizes, next_power_of_2, register
from dsv2_compile.kernels.gpu.source import mla_split as source
from dsv2_compile.plan.expr import Size, cdiv, evaluate, minimum

FIELDS = 5


def partial_rows(rows: Size, parts: int) -> Size:
    """Slots that `mla_decode` may fill: ``partial`` has this times HEADS * LATENT elements, ``lse`` times HEADS.

    Each of the parts - 1 cuts makes one more piece, and a row that is cut was one already.
    """
    return minimum(rows, parts) + (parts - 1)


def schedule(positions: list[int], page: int, parts: int, overhead: int) -> torch.Tensor:
    """``parts`` for rows at ``positions``: `mla_schedule` unit by unit."""
    units = [
        (row, max(block, 0))
        for row, position in enumerate(positions)
        if position >= 0
        for block in range(-overhead, position // page + 1)
    ]
    each, rows = max(-(-len(units) // parts), 1), len(positions)
    table, split, slots = torch.zeros(parts + 1, FIELDS, dtype=torch.int32), list[tuple[int, int]](), 0
    for part in range(parts + 1):
        at = part * each
        row, block = (0, 0) if part == 0 else units[at] if at < len(units) else (rows, 0)
        open_row = int(table[part - 1, 0]) if part and table[part - 1, 1] else -1
        slots += open_row >= 0
        if block and row != open_row:
            split.append((row, slots))
            slots += 1
        table[part, :3] = torch.tensor([row, block, slots])
    table[:, 3:] = torch.tensor([*split, *[(rows, slots)] * (parts + 1 - len(split))])
    return table


def _schedule_constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {**dims, "BLOCK_P": next_power_of_2(int(dims["PARTS"]) + 1), "BLOCK_R": config["BLOCK_R"]}


def _schedule_reference(dims: Dims, sizes: Mapping[str, int], positions: torch.Tensor) -> dict[str, Any]:
    return {"parts": schedule(positions.tolist(), int(dims["PAGE"]), int(dims["PARTS"]), int(dims["OVERHEAD"]))}


MLA_SCHEDULE = register(
    Kernel(
        name="mla_schedule",
        fn=source.mla_schedule,
        args={"positions": "*i32", "parts": "*i32", "rows": "i32"},
        outputs=("parts",),
        constants=_schedule_constants,
        grid=lambda dims, config, sizes: (1,),
        space={"BLOCK_R": (16, 32, 64), "num_warps": (4, 8), "num_stages": (1,)},
        default=lambda dims, target: {"BLOCK_R": 32, "num_warps": 8, "num_stages": 1},
        reference=_schedule_reference,
        cost=lambda dims, sizes: Cost(4 * (2 * sizes["rows"] + FIELDS * (int(dims["PARTS"]) + 1)), 0),
        work=work_attention.schedule,
    )
)
"""dims: PAGE, PARTS, OVERHEAD (of starting a row, in blocks). The rest of the contract is the module's."""


def merge(partial: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """[n, HEADS, LATENT] and [n, HEADS] of one row -> [HEADS, LATENT]."""
    weight = (lse * math.log(2)).softmax(0)
    return torch.einsum("nh,nhl->hl", weight, partial)


def _combine_constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {
        "HEADS": dims["HEADS"],
        "LATENT": dims["LATENT"],
        "BLOCK_L": min(config["BLOCK_L"], next_power_of_2(int(dims["LATENT"]))),
        "BLOCK_S": config["BLOCK_S"],
    }


def _combine_grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    columns = cdiv(int(dims["LATENT"]), int(_combine_constants(dims, config)["BLOCK_L"]))
    return (minimum(sizes["rows"], int(dims["PARTS"])), int(dims["HEADS"]), columns)


def _combine_reference(
    dims: Dims, sizes: Mapping[str, int], partial: torch.Tensor, lse: torch.Tensor, parts: torch.Tensor
) -> dict[str, Any]:
    out = torch.full((sizes["rows"], *partial.shape[1:]), float("nan"), dtype=partial.dtype)
    for (row, slot), (_, end) in pairwise(parts[:, 3:].tolist()):
        if row < sizes["rows"]:
            out[row] = merge(partial[slot:end], lse[slot:end])
    return {"out": out}


def _combine_cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    """Of as many pieces as there can be."""
    rows, parts = sizes["rows"], int(dims["PARTS"])
    width, slots = int(dims["HEADS"]) * int(dims["LATENT"]), int(evaluate(partial_rows(rows, parts), {}))
    return Cost(width * (4 * slots + 2 * min(rows, parts)), 2 * width * slots)


MLA_COMBINE = register(
    Kernel(
        name="mla_combine",
        fn=source.mla_combine,
        args={"partial": "*fp32", "lse": "*fp32", "parts": "*i32", "out": "*T", "rows": "i32"},
        outputs=("out",),
        constants=_combine_constants,
        grid=_combine_grid,
        space={"BLOCK_L": (64, 128, 256, 512), "BLOCK_S": (4, 8, 16, 32), "num_warps": (2, 4, 8), "num_stages": (1, 2)},
        default=lambda dims, target: {"BLOCK_L": 128, "BLOCK_S": 16, "num_warps": 4, "num_stages": 1},
        reference=_combine_reference,
        cost=_combine_cost,
        work=work_attention.combine,
    )
)
"""out *T [rows, HEADS, LATENT]: rows in several pieces, others are left alone. partial fp32 [slots, HEADS, LATENT],
lse fp32 [slots, HEADS] in base 2. dims: HEADS, LATENT, PARTS."""

"""Calls of `mla_split`."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.gpu.check import Case, Tensors, normal
from dsv2_compile.kernels.gpu.mla_split import FIELDS, MLA_COMBINE, MLA_SCHEDULE, partial_rows, schedule
from dsv2_compile.plan.expr import evaluate


def _schedule(positions: tuple[int, ...], parts: int, overhead: int = 1, page: int = 64) -> Case:
    dims = {"PAGE": page, "PARTS": parts, "OVERHEAD": overhead}
    name = f"positions {positions[:8]}, {len(positions)} rows, {parts} parts, overhead {overhead}, page {page}"
    return Case(
        name,
        MLA_SCHEDULE,
        dims,
        {"rows": len(positions)},
        lambda g: {"positions": torch.tensor(positions, dtype=torch.int32)},
        {"parts": (parts + 1, FIELDS)},
    )


def _combine(positions: tuple[int, ...], parts: int, heads: int = 3, latent: int = 512, page: int = 64) -> Case:
    rows = len(positions)
    slots = evaluate(partial_rows(rows, parts), {})

    def inputs(g: torch.Generator) -> Tensors:
        table = schedule(list(positions), page, parts, 1)
        partial, lse = normal(g, slots, heads, latent), normal(g, slots, heads, scale=8.0)
        used = int(table[-1, 4])
        partial[used:] = lse[used:] = float("nan")
        return {"partial": partial, "lse": lse, "parts": table}

    dims = {"HEADS": heads, "LATENT": latent, "PARTS": parts}
    name = f"positions {positions[:8]}, {rows} rows, {parts} parts, {heads} heads of {latent}"
    return Case(name, MLA_COMBINE, dims, {"rows": rows}, inputs, {"out": (rows, heads, latent)})


CASES = {
    "mla_schedule": [
        _schedule((0,), 1),
        _schedule((0,), 132),
        _schedule((63,), 4),
        _schedule((64,), 4),
        _schedule((65, 62, 63, 64), 3),
        _schedule((40000,), 132),
        _schedule((-1, -1, -1), 5),
        _schedule((-1, 5, -1, 700, -1, -1), 4),
        _schedule((130, -1, -1, 9000, 3, 64, 63, 1), 7, overhead=5),
        _schedule((64 * 9 - 1,) * 6, 18, overhead=0),
        _schedule((64 * 9 - 1,) * 6, 19, overhead=0),
        _schedule((10, 20, 30, 40, 50), 2),
        _schedule(tuple(range(0, 70 * 97, 97)), 33, overhead=2),
        _schedule((31, 4000) * 40, 78),
        _schedule((100, 5, 77), 16, page=1),
    ],
    "mla_combine": [
        _combine((2000,), 4),
        _combine((64 * 40,), 40, heads=1),
        _combine((5, 64, 900), 8, heads=2),
        _combine((5, 6, 7), 1),
        _combine((0, 63), 8),
        _combine((-1, 700, -1, 700), 3, latent=48, heads=5),
        _combine((1000, 100, 2000, 3000), 9, latent=200, heads=2),
        _combine((130,), 132, heads=16, latent=128),
        _combine((3000, 70) * 3, 17, latent=33),
    ],
}

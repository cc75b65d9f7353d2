"""Calls of `moe_up`, `moe_down` and `moe_combine`."""

from __future__ import annotations

from functools import partial

import torch

from dsv2_compile.kernels.gpu.cases.dispatch import ROUTINGS, Routing, distinct, only
from dsv2_compile.kernels.gpu.cases.makers import Maker, by_rows, heavy_ends
from dsv2_compile.kernels.gpu.check import Case, Tensors, always, normal, weights
from dsv2_compile.kernels.gpu.dispatch import sort_entries
from dsv2_compile.kernels.gpu.kernel import Dims, Kernel
from dsv2_compile.kernels.gpu.moe import MOE_COMBINE, MOE_DOWN, MOE_UP


def _only(*used: int) -> Routing:
    return only(lambda experts: torch.tensor(used))


_ROUTED: list[tuple[str, int, int, int, int, int, Routing, int]] = [
    # rows, experts, top_k, N, K, routing, expected rows
    ("one row", 1, 64, 6, 32, 64, distinct, 1),
    ("one row of 160 experts, K 70", 1, 160, 6, 15, 70, distinct, 1),
    ("several rows by a kernel for one", 7, 5, 2, 33, 130, distinct, 1),
    ("one row by a kernel for several", 1, 64, 6, 32, 64, distinct, 16),
    ("more experts than entries", 5, 160, 6, 16, 32, distinct, 16),
    ("5 experts, N 33, K 70", 11, 5, 2, 33, 70, distinct, 11),
    ("several tiles of an expert", 45, 5, 2, 80, 130, distinct, 16),
    ("experts without tokens", 14, 8, 3, 24, 40, _only(1, 4, 6), 14),
    ("all on the first", 37, 5, 1, 96, 64, _only(0), 37),
    ("all on the last", 18, 5, 2, 96, 64, _only(4), 18),
    ("top 1", 23, 12, 1, 40, 48, distinct, 23),
    ("one expert", 33, 1, 1, 72, 96, _only(0), 16),
    ("a tile exactly", 16, 3, 1, 64, 128, _only(1), 16),
    ("tiles of 32", 50, 4, 2, 70, 129, distinct, 50),
    ("tiles of 64", 80, 3, 2, 136, 72, distinct, 80),
    ("tiles of 128", 150, 3, 2, 264, 72, distinct, 4096),
    ("one row by a kernel for many", 1, 5, 2, 24, 40, distinct, 4096),
]


def _routed(kernel: Kernel, dims: Dims, rows: int, name: str, routing: Routing, heavy: bool = False) -> Case:
    experts, top_k, n, k = (int(dims[d]) for d in ("EXPERTS", "TOP_K", "N", "K"))
    up, entries = kernel is MOE_UP, rows * top_k

    def inputs(g: torch.Generator) -> Tensors:
        offsets, order = sort_entries(routing(g, rows, top_k, experts), experts)
        x = normal(g, rows if up else entries, k)
        return {
            "x": heavy_ends(x, k) if heavy else x,
            "w": weights(g, experts, 2 * n if up else n, k, scale=k**-0.5),
            "offsets": offsets,
            "order": order,
            **({} if up else {"weights": torch.rand(rows, top_k, generator=g, dtype=torch.float64) * 16}),
        }

    return Case(name, kernel, dims, {"rows": rows}, inputs, always(out=(entries, n)), decided=_hit)


def _hit(given: Tensors) -> dict[str, int]:
    offsets = given["offsets"]
    assert offsets is not None
    return {"experts": int((offsets.diff() > 0).sum())}


def _moe(kernel: Kernel, row: tuple[str, int, int, int, int, int, Routing, int]) -> Case:
    name, rows, experts, top_k, n, k, routing, hint = row
    dims = {"EXPERTS": experts, "TOP_K": top_k, "N": n, "K": k, "ROWS_HINT": hint}
    return _routed(kernel, dims, rows, name, routing)


def _build(kernel: Kernel, dims: Dims, rows: int, pattern: int) -> Case:
    what, routing = ROUTINGS[pattern]
    return _routed(kernel, dims, rows, f"{rows} rows, {what}", routing, heavy=pattern > 0)


def _sum_of_experts(dims: Dims, rows: int, pattern: int = 0) -> Case:
    n, top_k = int(dims["N"]), int(dims["TOP_K"])

    def inputs(g: torch.Generator) -> Tensors:
        parts = normal(g, rows, top_k, n)
        if pattern:  # the last expert counts for more than the others
            parts[:, -1] *= 8
        return {"parts": parts, "shared": normal(g, rows, n) if dims["SHARED"] else None}

    name = f"{rows} rows of {n}, top {top_k}" + ", shared" * bool(dims["SHARED"]) + f", pattern {pattern}" * pattern
    return Case(name, MOE_COMBINE, dims, {"rows": rows}, inputs, always(out=(rows, n)))


def _combine(rows: int, top_k: int, n: int, shared: bool) -> Case:
    return _sum_of_experts({"N": n, "TOP_K": top_k, "SHARED": shared}, rows)


MAKERS: dict[str, Maker] = {
    **{k.name: by_rows(k, partial(_build, k), len(ROUTINGS)) for k in (MOE_UP, MOE_DOWN)},
    "moe_combine": by_rows(MOE_COMBINE, _sum_of_experts, 2),
}

CASES = {
    "moe_up": [_moe(MOE_UP, row) for row in _ROUTED],
    "moe_down": [_moe(MOE_DOWN, row) for row in _ROUTED],
    "moe_combine": [
        _combine(1, 6, 5120, True),
        _combine(3, 6, 2048, True),
        _combine(4, 6, 1500, False),
        _combine(5, 1, 33, True),
        _combine(2, 1, 1, False),
        _combine(9, 8, 257, True),
        _combine(17, 2, 64, False),
        _combine(2, 3, 1024, True),
    ],
}

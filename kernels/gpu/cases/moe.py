"""Calls of `moe_up`, `moe_down` and `moe_combine`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from dsv2_compile.kernels.gpu.check import Case, Tensors, normal
from dsv2_compile.kernels.gpu.dispatch import sort_entries
from dsv2_compile.kernels.gpu.moe import MOE_COMBINE, MOE_DOWN, MOE_UP

Routing: TypeAlias = Callable[[torch.Generator, int, int, int], torch.Tensor]
"""(generator, rows, top_k, experts) -> ids [rows, top_k]"""


def _distinct(g: torch.Generator, rows: int, top_k: int, experts: int) -> torch.Tensor:
    return torch.rand(rows, experts, generator=g).topk(top_k, -1).indices


def _only(*used: int) -> Routing:
    return lambda g, rows, top_k, experts: torch.tensor(used)[torch.randint(len(used), (rows, top_k), generator=g)]


_ROUTED: list[tuple[str, int, int, int, int, int, Routing, int]] = [
    # rows, experts, top_k, N, K, routing, expected rows
    ("one row", 1, 64, 6, 32, 64, _distinct, 1),
    ("one row of 160 experts, K 70", 1, 160, 6, 15, 70, _distinct, 1),
    ("several rows by a kernel for one", 7, 5, 2, 33, 130, _distinct, 1),
    ("one row by a kernel for several", 1, 64, 6, 32, 64, _distinct, 16),
    ("more experts than entries", 5, 160, 6, 16, 32, _distinct, 16),
    ("5 experts, N 33, K 70", 11, 5, 2, 33, 70, _distinct, 11),
    ("several tiles of an expert", 45, 5, 2, 80, 130, _distinct, 16),
    ("experts without tokens", 14, 8, 3, 24, 40, _only(1, 4, 6), 14),
    ("all on the first", 37, 5, 1, 96, 64, _only(0), 37),
    ("all on the last", 18, 5, 2, 96, 64, _only(4), 18),
    ("top 1", 23, 12, 1, 40, 48, _distinct, 23),
    ("one expert", 33, 1, 1, 72, 96, _only(0), 16),
    ("a tile exactly", 16, 3, 1, 64, 128, _only(1), 16),
    ("tiles of 32", 50, 4, 2, 70, 129, _distinct, 50),
    ("tiles of 64", 80, 3, 2, 136, 72, _distinct, 80),
    ("tiles of 128", 150, 3, 2, 264, 72, _distinct, 4096),
    ("one row by a kernel for many", 1, 5, 2, 24, 40, _distinct, 4096),
]


def _moe(up: bool, row: tuple[str, int, int, int, int, int, Routing, int]) -> Case:
    name, rows, experts, top_k, n, k, routing, hint = row
    dims = {"EXPERTS": experts, "TOP_K": top_k, "N": n, "K": k, "ROWS_HINT": hint}
    entries = rows * top_k

    def inputs(g: torch.Generator) -> Tensors:
        offsets, order = sort_entries(routing(g, rows, top_k, experts), experts)
        return {
            "x": normal(g, rows if up else entries, k),
            "w": normal(g, experts, 2 * n if up else n, k, scale=k**-0.5),
            "offsets": offsets,
            "order": order,
            **({} if up else {"weights": torch.rand(rows, top_k, generator=g, dtype=torch.float64) * 16}),
        }

    return Case(name, MOE_UP if up else MOE_DOWN, dims, {"rows": rows}, inputs, {"out": (entries, n)})


def _combine(rows: int, top_k: int, n: int, shared: bool) -> Case:
    dims = {"N": n, "TOP_K": top_k, "SHARED": shared}

    def inputs(g: torch.Generator) -> Tensors:
        return {"parts": normal(g, rows, top_k, n), "shared": normal(g, rows, n) if shared else None}

    name = f"{rows} rows of {n}, top {top_k}" + ", shared" * shared
    return Case(name, MOE_COMBINE, dims, {"rows": rows}, inputs, {"out": (rows, n)})


CASES = {
    "moe_up": [_moe(True, row) for row in _ROUTED],
    "moe_down": [_moe(False, row) for row in _ROUTED],
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

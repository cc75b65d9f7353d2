"""Calls of `gate`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dsv2_compile.kernels.gpu.cases.makers import Maker, by_rows
from dsv2_compile.kernels.gpu.check import Case, Tensors, always
from dsv2_compile.kernels.gpu.gate import GATE
from dsv2_compile.kernels.gpu.kernel import Dims


def _integers(g: torch.Generator, largest: int, *shape: int) -> torch.Tensor:
    return torch.randint(-largest, largest + 1, shape, generator=g).double()


def _case(dims: Dims, rows: int, name: str, same: Sequence[Sequence[int]] = (), nan: int | None = None) -> Case:
    """``same``: experts with equal rows of w, so equal scores. ``nan``: a row of x that is NaN.

    Whole numbers times a power of 2, so that logits are exact in any order of summation: two of them are equal, or
    2**-12 or more apart, far beyond what softmax rounds in fp32. Their standard deviation is between 2 and 4.
    """
    experts, k = int(dims["EXPERTS"]), int(dims["K"])
    step = 2.0 ** -round(math.log2(math.sqrt(k) * 161 / 2.8))

    def inputs(g: torch.Generator) -> Tensors:
        x, w = _integers(g, 7, rows, k), _integers(g, 64, experts, k) * step
        for first, *others in same:
            w[others] = w[first].clone()
        if nan is not None:
            x[nan] = float("nan")
        return {"x": x, "w": w}

    shape = (rows, int(dims["TOP_K"]))
    return Case(name, GATE, dims, {"rows": rows}, inputs, always(ids=shape, weights=shape))


def _build(dims: Dims, rows: int, pattern: int) -> Case:
    """No ties; ties across groups, within them, everywhere; a row of NaN."""
    experts = int(dims["EXPERTS"])
    members, half = experts // int(dims["GROUPS"]), experts // 2
    ties: dict[int, Sequence[Sequence[int]]] = {
        1: [range(i, experts, members) for i in range(members)] if members < experts else [],
        2: [(i, i + half) for i in range(half)],
        3: [range(experts)],
        4: [range(i, min(i + 3, experts)) for i in range(0, experts, 3)],
    }
    nan = rows // 2 if pattern == 5 else None
    return _case(dims, rows, f"{rows} rows, pattern {pattern}", ties.get(pattern, []), nan)


MAKERS: dict[str, Maker] = {"gate": by_rows(GATE, _build, 6)}


def _gate(
    name: str,
    rows: int,
    experts: int,
    k: int,
    top_k: int,
    groups: tuple[int, int] = (1, 1),
    scale: float = 1.0,
    normalize: bool = False,
    same: Sequence[Sequence[int]] = (),
    nan: int | None = None,
    hint: int = 16,
) -> Case:
    dims = {
        "EXPERTS": experts,
        "K": k,
        "TOP_K": top_k,
        "GROUPS": groups[0],
        "TOPK_GROUPS": groups[1],
        "SCALE": scale,
        "NORMALIZE": normalize,
        "ROWS_HINT": hint,
    }
    return _case(dims, rows, name, same, nan)


CASES = {
    "gate": [
        _gate("160 experts, 3 of 8 groups, top 6", 5, 160, 256, 6, (8, 3), scale=16.0),
        _gate("one row, K 5120", 1, 160, 5120, 6, (8, 3), scale=16.0),
        _gate("a prefill tile, not full", 37, 160, 96, 6, (8, 3), scale=16.0, hint=8192),
        _gate("64 experts, one group", 19, 64, 192, 6),
        _gate("normalised", 17, 64, 64, 6, scale=16.0, normalize=True),
        _gate("5 experts, K 33", 3, 5, 33, 2),
        _gate("12 experts, 2 of 4 groups, K 50", 18, 12, 50, 3, (4, 2)),
        _gate("15 experts, 2 of 5 groups, normalised", 9, 15, 40, 4, (5, 2), normalize=True),
        _gate("groups kept are smaller than top k", 16, 12, 48, 6, (6, 2), scale=2.0),
        _gate("groups kept are smaller than top k, normalised", 4, 12, 48, 8, (4, 1), normalize=True),
        _gate("all experts chosen, one group kept", 4, 6, 32, 6, (3, 1)),
        _gate("top 1", 7, 8, 32, 1, (2, 1)),
        _gate("all experts equal", 3, 160, 32, 6, (8, 3), same=[range(160)]),
        _gate("all experts equal, one group", 2, 12, 32, 5, same=[range(12)]),
        _gate("equal pairs", 33, 64, 64, 6, same=[(i, i + 32) for i in range(32)]),
        _gate("equal triples across groups", 20, 160, 64, 6, (8, 3), same=[(i, i + 20, i + 140) for i in range(20)]),
        _gate("equal groups", 20, 24, 64, 6, (4, 2), same=[(i, i + 6, i + 12, i + 18) for i in range(6)]),
        _gate("a row of NaN", 4, 20, 32, 6, (4, 3), nan=2),
    ]
}

"""Calls of `dispatch`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv2_compile.kernels.gpu.check import Case, Tensors
from dsv2_compile.kernels.gpu.dispatch import DISPATCH


def _dispatch(
    name: str,
    rows: int,
    experts: int,
    top_k: int,
    used: Callable[[int], torch.Tensor] = torch.arange,
    hint: int = 128,
) -> Case:
    """``used(experts)``: the experts that ids are drawn from."""
    dims = {"EXPERTS": experts, "TOP_K": top_k, "ROWS_HINT": hint}

    def inputs(g: torch.Generator) -> Tensors:
        choice = used(experts)
        return {"ids": choice[torch.randint(len(choice), (rows, top_k), generator=g)].int()}

    outputs = {"offsets": (experts + 1,), "order": (rows * top_k,)}
    return Case(name, DISPATCH, dims, {"rows": rows}, inputs, outputs)


CASES = {
    "dispatch": [
        _dispatch("one row", 1, 160, 6),
        _dispatch("128 rows", 128, 160, 6),
        _dispatch("171 rows, past one block", 171, 64, 6),
        _dispatch("8192 rows", 8192, 5, 6, hint=8192),
        _dispatch("8192 rows, a default for few", 8192, 3, 1),
        _dispatch("top 1", 33, 12, 1),
        _dispatch("one expert", 9, 1, 2),
        _dispatch("all on the first", 50, 7, 3, used=lambda n: torch.tensor([0])),
        _dispatch("all on the last", 50, 7, 3, used=lambda n: torch.tensor([n - 1])),
        _dispatch("every other expert without tokens", 40, 9, 4, used=lambda n: torch.arange(0, n, 2)),
        _dispatch("a block exactly", 256, 5, 4),
    ]
}

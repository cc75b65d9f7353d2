"""Calls of `dispatch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from dsv2_compile.kernels.gpu.cases.makers import Maker, by_rows, zipf
from dsv2_compile.kernels.gpu.check import Case, Tensors, always
from dsv2_compile.kernels.gpu.dispatch import DISPATCH
from dsv2_compile.kernels.gpu.kernel import Dims

Routing: TypeAlias = Callable[[torch.Generator, int, int, int], torch.Tensor]
"""(generator, rows, top_k, experts) -> ids [rows, top_k]"""


def distinct(g: torch.Generator, rows: int, top_k: int, experts: int) -> torch.Tensor:
    return torch.rand(rows, experts, generator=g).topk(top_k, -1).indices


def only(used: Callable[[int], torch.Tensor]) -> Routing:
    """``used(experts)``: those that ids are drawn from, with repetition."""

    def draw(g: torch.Generator, rows: int, top_k: int, experts: int) -> torch.Tensor:
        choice = used(experts)
        return choice[torch.randint(len(choice), (rows, top_k), generator=g)]

    return draw


def first_and_others(g: torch.Generator, rows: int, top_k: int, experts: int) -> torch.Tensor:
    """Every token is on the first expert once, so that its tiles end where those of the rows do."""
    return torch.cat((torch.zeros(rows, 1, dtype=torch.int64), 1 + distinct(g, rows, top_k - 1, experts - 1)), 1)


ROUTINGS: tuple[tuple[str, Routing], ...] = (
    ("some experts more than others", zipf),
    ("all on the first, and on others", first_and_others),
    ("any experts", distinct),
    ("all on the first", only(lambda n: torch.tensor([0]))),
    ("every other expert without tokens", only(lambda n: torch.arange(0, n, 2))),
    ("all on the last", only(lambda n: torch.tensor([n - 1]))),
    ("on the last two", only(lambda n: torch.arange(max(0, n - 2), n))),
)
"""By pattern."""


def _case(dims: Dims, rows: int, name: str, routing: Routing) -> Case:
    experts, top_k = int(dims["EXPERTS"]), int(dims["TOP_K"])

    def inputs(g: torch.Generator) -> Tensors:
        return {"ids": routing(g, rows, top_k, experts).int()}

    outputs = always(offsets=(experts + 1,), order=(rows * top_k,))
    return Case(name, DISPATCH, dims, {"rows": rows}, inputs, outputs)


def _build(dims: Dims, rows: int, pattern: int) -> Case:
    what, routing = ROUTINGS[pattern]
    return _case(dims, rows, f"{rows} rows, {what}", routing)


MAKERS: dict[str, Maker] = {"dispatch": by_rows(DISPATCH, _build, len(ROUTINGS), per_row="TOP_K")}


def _dispatch(
    name: str,
    rows: int,
    experts: int,
    top_k: int,
    used: Callable[[int], torch.Tensor] = torch.arange,
    hint: int = 128,
) -> Case:
    """``used(experts)``: the experts that ids are drawn from."""
    return _case({"EXPERTS": experts, "TOP_K": top_k, "ROWS_HINT": hint}, rows, name, only(used))


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

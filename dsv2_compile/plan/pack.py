"""The inputs of one call of a native program, from its sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.plan.dtypes import NUMPY
from dsv2_compile.plan.plan import PlanProgram

Ints = NDArray[np.int32]
Arrays = Mapping[str, NDArray[Any]]
GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "uniform": 0.0}
"""Inputs that say how the next token is chosen, and what makes it the most likely one."""


def pack(
    program: PlanProgram,
    page: int,
    tokens: Sequence[NDArray[np.integer]],
    past: Sequence[int],
    tables: Ints,
    choice: Arrays | None = None,
) -> tuple[dict[str, int], dict[str, NDArray[Any]]]:
    """Symbols and inputs of ``program`` for sequences that get ``tokens[b]`` after ``past[b]`` cached positions.

    ``tables`` int32 [batch, pages]: their page tables, pages for the new positions included. ``choice``: the inputs
    that say how the next tokens are chosen, [batch] each; without it, the most likely ones are.
    """
    lengths = np.array([len(t) for t in tokens])
    totals = np.array(past) + lengths
    where = [np.arange(p, t) for p, t in zip(past, totals, strict=True)]
    seen = [np.arange(t) for t in totals]
    query_start = _starts(lengths)
    made = {
        "tokens": np.concatenate(tokens),
        "positions": np.concatenate(where),
        "slots": _slots(tables, where, page),
        "sequence": np.repeat(np.arange(len(tokens)), lengths),
        "page_table": tables,
        "query_start": query_start,
        "context_start": _starts(totals),
        "last_rows": query_start[1:] - 1,
        **{name: np.full(len(tokens), value) for name, value in GREEDY.items()},
        **(choice or {}),
    }
    if "context_slots" in program.buffers:
        made["context_slots"] = _slots(tables, seen, page)
    symbols = {"rows": int(lengths.sum()), "batch": len(tokens), "context": int(totals.sum())}
    held = program.buffers
    return symbols, {n: np.ascontiguousarray(v, NUMPY[held[n].dtype]) for n, v in made.items() if n in held}


def pad(inputs: Arrays, rows: int) -> dict[str, NDArray[Any]]:
    """A decode step's inputs for ``rows`` rows: the rows beyond its own are padding, which write and attend nothing."""
    fill = {"tokens": 0, "positions": -1, "slots": -1, "sequence": 0, "page_table": 0, **GREEDY}
    return {n: np.concatenate((v, np.full((rows - len(v), *v.shape[1:]), fill[n], v.dtype))) for n, v in inputs.items()}


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths)))


def _slots(tables: Ints, positions: Sequence[NDArray[np.int64]], page: int) -> NDArray[np.int64]:
    """Rows of the cache at ``positions[b]`` of each sequence."""
    return np.concatenate([cache_rows(t, p, page) for t, p in zip(tables, positions, strict=True)])


def cache_rows(table: Ints, positions: NDArray[np.int64], page: int) -> NDArray[np.int64]:
    """Rows of the cache at ``positions`` of the sequence whose pages are ``table``."""
    found: NDArray[np.int64] = table[positions // page].astype(np.int64) * page + positions % page
    return found

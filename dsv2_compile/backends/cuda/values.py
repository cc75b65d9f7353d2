"""What the nodes of a program become while it is lowered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import fx

from dsv2_compile.backends.cuda.draft import BATCH, CONTEXT, ROWS, SLOTS, Draft, View
from dsv2_compile.errors import ModelError
from dsv2_compile.origin import written
from dsv2_compile.plan.dtypes import ITEM_BYTES
from dsv2_compile.plan.expr import Size, evaluate
from dsv2_compile.plan.plan import Pointer
from dsv2_compile.program import Program

_FLOAT32 = ("rope.cos", "rope.sin")


@dataclass(frozen=True)
class Skipped:
    """A value that no launch makes: sizes, positions, what the kernels find out for themselves."""

    what: str


@dataclass(frozen=True)
class Rotated:
    """Queries ``q`` whose last ``rope`` values per head have still to be rotated; ``nope`` come before them."""

    q: View
    heads: int
    nope: int
    rope: int


@dataclass(frozen=True)
class Sum:
    """``a`` + ``b``, still to be computed by whoever reads it."""

    a: View
    b: View


@dataclass(frozen=True)
class Last:
    """The last row of every sequence of ``of``."""

    of: View | Sum


@dataclass(frozen=True)
class Deferred:
    """``width`` columns that are made straight where their reader wants them: ``make(into)`` launches it."""

    width: int
    make: Callable[[View], None]


@dataclass(frozen=True)
class Parts:
    """What each expert of a token gives, weighted, [rows * top_k, width]: still to be summed by token."""

    of: View
    top_k: int


Rule: TypeAlias = Callable[["Lowering", fx.Node], Any]


@dataclass
class Lowering:
    """``values``: by node, a `View` or one of the classes above. ``pages``: width of a page table."""

    program: Program
    phase: str
    draft: Draft
    pages: int
    values: dict[fx.Node, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    def placeholder(self, node: fx.Node) -> Any:
        return Skipped(str(node.target))

    def weight(self, name: str) -> View:
        """A whole weight as a matrix: rows are all leading dims."""
        shape = self.program.weights[name].shape
        dtype = "fp32" if name in _FLOAT32 else self.draft.dtype
        self.draft.buffer(name, "weight", dtype, *shape)
        return View(name, math.prod(shape[:-1]), shape[-1], shape[-1], dtype)

    def view(self, node: Any) -> View:
        """The matrix that ``node`` became; ModelError if it is none."""
        value = self.values[node]
        if not isinstance(value, View):
            raise unsupported(node, f"{type(value).__name__} where a matrix is needed")
        return value

    def hint(self, rows: Size) -> int:
        """How many rows a launch over ``rows`` should be fast for: as many as it may have."""
        return evaluate(rows, self.draft.limits)

    def input(self, name: str) -> Pointer:
        dtype, shape = _INPUTS[name]
        return Pointer(self.draft.buffer(name, "input", dtype, *shape(self)))

    def layer_cache(self, layer: int) -> Pointer:
        """[slots, cache_dim] of ``layer``."""
        c = self.program.config
        name = self.draft.buffer("cache", "cache", self.draft.dtype, c.num_hidden_layers, SLOTS, c.cache_dim)
        return Pointer(name, SLOTS * (layer * c.cache_dim * ITEM_BYTES[self.draft.dtype]))


_INPUTS: dict[str, tuple[str, Callable[[Lowering], tuple[Size, ...]]]] = {
    "tokens": ("i32", lambda low: (ROWS,)),
    "positions": ("i32", lambda low: (ROWS,)),
    "slots": ("i32", lambda low: (ROWS,)),
    "sequence": ("i32", lambda low: (ROWS,)),
    "page_table": ("i32", lambda low: (BATCH, low.pages)),
    "query_start": ("i32", lambda low: (BATCH + 1,)),
    "context_start": ("i32", lambda low: (BATCH + 1,)),
    "context_slots": ("i32", lambda low: (CONTEXT,)),
    "last_rows": ("i32", lambda low: (BATCH,)),
    "temperature": ("fp32", lambda low: (BATCH,)),
    "top_p": ("fp32", lambda low: (BATCH,)),
    "top_k": ("i32", lambda low: (BATCH,)),
    "uniform": ("fp32", lambda low: (BATCH,)),
}
"""Inputs of a call. positions: of each new row, -1 for a row that is padding; slots: cache row that it is
written to, -1 for none; sequence: row of the page table; query_start, context_start: prefix sums of new rows and
of visible positions per sequence; context_slots: cache rows of the visible positions; last_rows: the last new row
of each sequence; temperature, top_p, top_k, uniform: how the next token of each sequence is chosen, see `sample`."""


def args_of(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def layer_of(node: fx.Node) -> int:
    """The layer whose weights ``node`` reads."""
    for arg in node.all_input_nodes:
        if arg.op == "get_attr" and str(arg.target).startswith("model.layers."):
            return int(str(arg.target).split(".")[2])
    raise unsupported(node, "no weight of a layer")


def unsupported(node: Any, why: str) -> ModelError:
    place = written(node) if isinstance(node, fx.Node) else ""
    return ModelError(
        f"the CUDA backend cannot lower {getattr(node, 'target', node)}: {why}{place}",
        "use the graph that the passes make of the reference model",
    )

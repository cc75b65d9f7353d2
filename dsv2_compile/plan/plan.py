"""The native plan: kernels, buffers and launches of a GPU engine, as every executor reads it.

A program is a list of launches over named buffers. Grids, sizes and offsets are expressions over the
program's symbols; what a symbol may be at most is in its limits, and the arena is laid out for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from dsv2_compile.plan.dtypes import ITEM_BYTES
from dsv2_compile.plan.expr import Size, evaluate

SCHEMA = "dsv2/plan/2"
FILE = "plan.json"
SYMBOLS = frozenset({"rows", "batch", "context", "slots"})
"""New tokens of all sequences; sequences; visible positions of all sequences, new ones included; rows of the cache."""
PLACES = ("input", "output", "weight", "cache", "arena")
ALIGNMENT = 256
"""Of every buffer, bytes."""


@dataclass(frozen=True)
class KernelEntry:
    """A compiled kernel. ``args``: types in order; ``aligned``: which must be multiples of 16.

    ``kernel`` and ``constants`` name its source, for the host; ``warps``, ``shared`` (bytes) and ``scratch``
    (bytes per block, with its alignment) are for the launch on a GPU.
    """

    kernel: str
    cubin: str
    symbol: str
    args: tuple[str, ...]
    aligned: tuple[bool, ...]
    constants: Mapping[str, int | float | bool]
    warps: int
    shared: int
    scratch: int
    scratch_align: int


@dataclass(frozen=True)
class Pointer:
    """``offset`` bytes into a buffer."""

    buffer: str
    offset: Size = 0


Argument: TypeAlias = "Pointer | Size | None"
"""None is a null pointer."""


@dataclass(frozen=True)
class Launch:
    """``kernel`` counts the plan's kernels; ``what`` says what is computed, for people."""

    kernel: int
    grid: tuple[Size, Size, Size]
    args: tuple[Argument, ...]
    what: str


@dataclass(frozen=True)
class Buffer:
    """``place``: one of `PLACES`. ``offset``: bytes from the start of the arena, 0 elsewhere."""

    dtype: str
    shape: tuple[Size, ...]
    place: str
    offset: int = 0

    def nbytes(self, symbols: Mapping[str, int]) -> int:
        total = ITEM_BYTES[self.dtype]
        for d in self.shape:
            total *= evaluate(d, symbols)
        return total


@dataclass(frozen=True)
class PlanProgram:
    """``limits``: largest value of each symbol but ``slots``. Outputs: logits fp32 [batch, vocabulary] and next_tokens
    i32 [batch]."""

    phase: str
    limits: Mapping[str, int]
    buffers: Mapping[str, Buffer]
    launches: tuple[Launch, ...]
    arena_bytes: int


@dataclass(frozen=True)
class Plan:
    """``capability``: the architecture that the cubins are for (sm_90). ``page``: positions of a cache page;
    ``pages``: most pages of a sequence, the width of a page table. ``programs`` by name, the smallest of a phase
    first."""

    target: str
    capability: str
    dtype: str
    page: int
    pages: int
    kernels: tuple[KernelEntry, ...]
    programs: Mapping[str, PlanProgram]

    def program_for(self, phase: str, rows: int, batch: int, context: int) -> str | None:
        """Name of the program that serves ``phase``; where prefill cannot expand the context, extend does."""
        sizes = {"rows": rows, "batch": batch}
        if phase == "decode":
            return self.smallest("decode", **sizes)
        return self.smallest("prefill", **sizes, context=context) or self.smallest("extend", **sizes)

    def smallest(self, phase: str, **sizes: int) -> str | None:
        """Name of the first program of ``phase`` whose limits hold ``sizes``."""
        for name, program in self.programs.items():
            if program.phase == phase and all(program.limits[k] >= v for k, v in sizes.items()):
                return name
        return None

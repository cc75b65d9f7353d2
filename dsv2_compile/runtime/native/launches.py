"""The launches of a program with every number known: what an executor hands to the driver."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from dsv2_compile.plan.expr import evaluate, symbols_of
from dsv2_compile.plan.plan import KernelEntry, Launch, Plan, PlanProgram, Pointer

WARP = 32
"""Threads."""
CLAIM = 16
"""What an aligned argument is a multiple of."""


@dataclass(frozen=True)
class Resolved:
    """``kernel`` counts the plan's kernels. ``shared``: dynamic shared memory, bytes. ``args``: the kernel's own, then
    the addresses of its two scratch areas, of which the second, for profiling, is never used."""

    kernel: int
    grid: tuple[int, int, int]
    threads: int
    shared: int
    args: tuple[int, ...]
    what: str


def resolve(
    plan: Plan, program: PlanProgram, sizes: Mapping[str, int], addresses: Mapping[str, int], scratch: tuple[int, int]
) -> Iterator[Resolved]:
    """Every launch that has a block, in order. ``sizes``: all symbols; ``addresses``: of every buffer of the program;
    ``scratch``: address and bytes of the area for kernels that need one.

    Raises ValueError where the plan's claim of an alignment does not hold, or the scratch area is too small.
    """
    for launch in program.launches:
        x, y, z = (evaluate(g, sizes) for g in launch.grid)
        if not x * y * z:
            continue
        entry = plan.kernels[launch.kernel]
        own = tuple(_values(entry, launch, sizes, addresses))
        if entry.scratch * x * y * z > scratch[1]:
            raise ValueError(f"{launch.what}: {entry.kernel} needs more scratch than the {scratch[1]} bytes there are")
        behind = (scratch[0] if entry.scratch else 0, 0)
        yield Resolved(launch.kernel, (x, y, z), entry.warps * WARP, entry.shared, own + behind, launch.what)


def _values(
    entry: KernelEntry, launch: Launch, sizes: Mapping[str, int], addresses: Mapping[str, int]
) -> Iterator[int]:
    for i, (claim, arg) in enumerate(zip(entry.aligned, launch.args, strict=True)):
        if isinstance(arg, Pointer):
            value = addresses[arg.buffer] + evaluate(arg.offset, sizes)
        else:
            value = 0 if arg is None else evaluate(arg, sizes)
        if claim and value % CLAIM:
            raise ValueError(f"{launch.what}: argument {i} of {entry.kernel} is {value}, no multiple of {CLAIM}")
        yield value


def widths(entry: KernelEntry) -> tuple[int, ...]:
    """Bytes of every parameter of the compiled kernel."""
    return (*(8 if kind.startswith("*") else 4 for kind in entry.args), 8, 8)


def parameters(entry: KernelEntry, args: tuple[int, ...]) -> tuple[int | np.int32, ...]:
    """The values as a launch through cuda.core takes them: an int is an address, a scalar has its type."""
    return tuple(v if w == 8 else np.int32(v) for v, w in zip(args, widths(entry), strict=True))


def scratch_bytes(plan: Plan, slots: int) -> int:
    """Scratch of the launch that takes most. Launches run one after the other, so all use the same area."""
    most = 0
    for program in plan.programs.values():
        sizes = {**program.limits, "slots": slots}
        for launch in program.launches:
            blocks = math.prod(evaluate(g, sizes) for g in launch.grid)
            most = max(most, plan.kernels[launch.kernel].scratch * blocks)
    return most


def bucket(rows: int, limit: int) -> int:
    """Rows that a decode step of ``rows`` is padded to: the next power of two, or all that the program takes."""
    return min(1 << (rows - 1).bit_length(), limit)


def replayable(program: PlanProgram) -> bool:
    """Whether the launches of a step are the same whatever the sequences' lengths: one token each, and no number that
    follows from the visible positions."""
    if program.phase != "decode":
        return False
    numbers = [g for x in program.launches for g in x.grid]
    for launch in program.launches:
        numbers += [a.offset if isinstance(a, Pointer) else a for a in launch.args if a is not None]
    return not any("context" in symbols_of(n) for n in numbers)

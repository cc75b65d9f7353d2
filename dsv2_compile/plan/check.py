"""What a plan must satisfy before anything of it is run: the rules, as a list of what is broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dsv2_compile.plan.dtypes import ITEM_BYTES
from dsv2_compile.plan.expr import Size, evaluate, symbol, symbols_of
from dsv2_compile.plan.plan import (
    ALIGNMENT,
    PLACES,
    SYMBOLS,
    Buffer,
    KernelEntry,
    Launch,
    Plan,
    PlanProgram,
    Pointer,
)

PHASES = ("prefill", "extend", "decode")
TYPES = frozenset({"i32", *(f"*{dtype}" for dtype in ITEM_BYTES)})
OUTPUTS = {"logits": ("fp32", (symbol("batch"),), 2), "next_tokens": ("i32", (symbol("batch"),), 1)}
"""Of every program: dtype, first dim, number of dims."""
MAX_GRID = (2**31 - 1, 65535, 65535)
"""Blocks of a launch by axis, as CUDA limits them."""


def problems(plan: Plan) -> Iterator[str]:
    """One line for everything that is wrong with ``plan``."""
    for i, entry in enumerate(plan.kernels):
        yield from (f"kernels[{i}] {entry.kernel}: {p}" for p in _kernel(entry))
    if plan.page < 1 or plan.pages < 1:
        yield "a page or a page table holds nothing"
    for name, program in plan.programs.items():
        yield from (f"programs.{name}: {p}" for p in _program(plan, program))


def _kernel(entry: KernelEntry) -> Iterator[str]:
    if len(entry.aligned) != len(entry.args):
        yield "alignment is not given for every argument"
    for kind in entry.args:
        if kind not in TYPES:
            yield f"unknown argument type {kind}"
    if not 1 <= entry.warps <= 32 or min(entry.shared, entry.scratch) < 0 or entry.scratch_align < 1:
        yield "warps, shared memory or scratch are out of range"


def _program(plan: Plan, program: PlanProgram) -> Iterator[str]:
    if program.phase not in PHASES:
        yield f"unknown phase {program.phase}"
    if set(program.limits) != SYMBOLS - {"slots"} or min(program.limits.values()) < 1:
        yield "limits must name rows, batch and context, each at least 1"
        return
    sizes = [{**program.limits, "slots": plan.page}, {**dict.fromkeys(program.limits, 1), "slots": plan.page}]
    if {n: (b.dtype, b.shape[:1], len(b.shape)) for n, b in program.buffers.items() if b.place == "output"} != OUTPUTS:
        yield "the outputs are not logits fp32 [batch, vocabulary] and next_tokens i32 [batch]"
    found = [f"buffer {n}: {p}" for n, b in program.buffers.items() for p in _buffer(b, program, sizes)]
    yield from found
    if found:
        return
    for i, launch in enumerate(program.launches):
        yield from (f"launches[{i}] {launch.what}: {p}" for p in _launch(plan, program, launch, sizes))
    yield from _overlaps(program, sizes[0])


def _buffer(buffer: Buffer, program: PlanProgram, sizes: list[dict[str, int]]) -> Iterator[str]:
    if buffer.place not in PLACES or buffer.dtype not in ITEM_BYTES:
        yield f"unknown place {buffer.place} or dtype {buffer.dtype}"
        return
    if any(symbols_of(d) - SYMBOLS for d in buffer.shape):
        yield "unknown symbol"
        return
    if any(evaluate(d, s) < 0 for d in buffer.shape for s in sizes):
        yield "negative size"
    elif buffer.place == "arena":
        if buffer.offset % ALIGNMENT or buffer.offset < 0:
            yield f"offset {buffer.offset} is no multiple of {ALIGNMENT}"
        if buffer.offset + buffer.nbytes(sizes[0]) > program.arena_bytes:
            yield f"ends beyond the arena of {program.arena_bytes} bytes"


def _launch(plan: Plan, program: PlanProgram, launch: Launch, sizes: list[dict[str, int]]) -> Iterator[str]:
    if not 0 <= launch.kernel < len(plan.kernels):
        yield f"there is no kernel {launch.kernel}"
        return
    entry = plan.kernels[launch.kernel]
    if len(launch.args) != len(entry.args):
        yield f"{len(launch.args)} arguments, {entry.kernel} takes {len(entry.args)}"
        return
    for axis, (size, limit) in enumerate(zip(launch.grid, MAX_GRID, strict=True)):
        if not _within(size, sizes, 0, limit):
            yield f"grid axis {axis} is {size}"
    for i, (kind, arg) in enumerate(zip(entry.args, launch.args, strict=True)):
        if isinstance(arg, Pointer):
            yield from (f"argument {i}: {p}" for p in _pointer(kind, arg, program, sizes))
        elif arg is None and not kind.startswith("*"):
            yield f"argument {i}: a {kind} has no value"
        elif arg is not None and (kind.startswith("*") or not _within(arg, sizes, -(2**31), 2**31 - 1)):
            yield f"argument {i}: {arg} for a {kind}"


def _pointer(kind: str, arg: Pointer, program: PlanProgram, sizes: list[dict[str, int]]) -> Iterator[str]:
    buffer = program.buffers.get(arg.buffer)
    if buffer is None:
        yield f"there is no buffer {arg.buffer}"
    elif kind != f"*{buffer.dtype}":
        yield f"{arg.buffer} holds {buffer.dtype}, the kernel takes {kind}"
    elif symbols_of(arg.offset) - SYMBOLS:
        yield "unknown symbol"
    else:
        for s in sizes:
            at, item = evaluate(arg.offset, s), ITEM_BYTES[buffer.dtype]
            if not 0 <= at <= buffer.nbytes(s) or at % item:
                yield f"offset {arg.offset} of {arg.buffer} lies outside it or inside an element"
                return


def _within(size: Size, sizes: list[dict[str, int]], low: int, high: int) -> bool:
    return not symbols_of(size) - SYMBOLS and all(low <= evaluate(size, s) <= high for s in sizes)


def _overlaps(program: PlanProgram, sizes: Mapping[str, int]) -> Iterator[str]:
    """Two buffers of the arena that hold something at the same launch and share a byte."""
    live: dict[str, list[int]] = {}
    for at, launch in enumerate(program.launches):
        for arg in launch.args:
            if isinstance(arg, Pointer) and arg.buffer in program.buffers:
                live.setdefault(arg.buffer, []).append(at)
    spans = sorted(
        (b.offset, b.offset + b.nbytes(sizes), min(live[n]), max(live[n]), n)
        for n, b in program.buffers.items()
        if b.place == "arena" and n in live
    )
    for i, (_, end, first, last, name) in enumerate(spans):
        for start, _, begin, until, other in spans[i + 1 :]:
            if start >= end:
                break
            if first <= until and begin <= last:
                yield f"buffers {name} and {other} overlap while both are in use"

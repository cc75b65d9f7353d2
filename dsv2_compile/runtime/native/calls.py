"""One call of a program: what is asked for, what is run for it, and where that lies in the blocks of GPU memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.plan.dtypes import NUMPY
from dsv2_compile.plan.pack import pad
from dsv2_compile.plan.plan import PlanProgram
from dsv2_compile.runtime.native.launches import bucket
from dsv2_compile.runtime.native.memory import of_place, packed, shape

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Call:
    """``asked``: the caller's sizes; ``sizes``: those that are run, all symbols; ``inputs`` as they are run.

    ``replayed``: a decode step that is padded to a bucket, so that a graph made for it serves others.
    """

    name: str
    program: PlanProgram
    asked: Mapping[str, int]
    sizes: Mapping[str, int]
    inputs: Arrays
    replayed: bool

    def area(self, place: str) -> tuple[dict[str, int], int]:
        """Offsets of the inputs or outputs in their block, and the bytes they take of it."""
        return packed(of_place(self.program, place, self.sizes))

    def addresses(self, blocks: Mapping[str, int], weights: Mapping[str, int]) -> dict[str, int]:
        """Of every buffer. ``blocks``: addresses by purpose; ``weights``: offsets in their block."""
        offsets = {"input": self.area("input")[0], "output": self.area("output")[0], "weight": weights}
        block = {"input": "inputs", "output": "outputs", "weight": "weights", "cache": "cache", "arena": "arena"}
        return {
            name: blocks[block[b.place]] + offsets.get(b.place, {}).get(name, b.offset)
            for name, b in self.program.buffers.items()
        }


def prepare(
    name: str, program: PlanProgram, slots: int, symbols: Mapping[str, int], inputs: Arrays, replayed: bool
) -> Call:
    """ValueError for sizes beyond the program's limits and for inputs of other sizes. ``replayed``: if possible."""
    asked = {**symbols, "slots": slots}
    if any(not 1 <= symbols[s] <= limit for s, limit in program.limits.items()):
        raise ValueError(f"{dict(symbols)} is not within the limits {dict(program.limits)} of {name}")
    given = {}
    for n, buffer in program.buffers.items():
        if buffer.place == "input":
            given[n] = np.ascontiguousarray(inputs[n], NUMPY[buffer.dtype])
            if given[n].shape != shape(buffer, asked):
                raise ValueError(f"input {n} is {given[n].shape}, {shape(buffer, asked)} is expected")
    if not replayed or symbols["rows"] != symbols["batch"]:
        return Call(name, program, asked, asked, given, False)
    size = bucket(symbols["rows"], min(program.limits["rows"], program.limits["batch"]))
    sizes = {"rows": size, "batch": size, "context": program.limits["context"], "slots": slots}
    return Call(name, program, asked, sizes, pad(given, size), True)

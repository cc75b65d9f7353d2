"""Executes a native plan on the host: every launch through the interpreter, on memory laid out as the plan says.

Proves a plan with no GPU. A launch may touch only the buffers it names; a buffer whose life begins is
filled with NaN, so what nothing has written is seen; a claimed alignment is checked. Slow: for small models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.kernels.gpu.interpret import AccessError, Memory, run
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.plan.dtypes import NUMPY
from dsv2_compile.plan.expr import evaluate
from dsv2_compile.plan.plan import ALIGNMENT, Buffer, Launch, Plan, PlanProgram, Pointer

Bytes = NDArray[np.uint8]
Arrays = Mapping[str, NDArray[Any]]
FLOATS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def aligned(nbytes: int) -> Bytes:
    """Uninitialised bytes that start at a multiple of `ALIGNMENT`."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


class HostExecutor:
    """``weights``: arrays by name, bf16 as uint16. ``slots``: rows of the cache, a multiple of the page."""

    def __init__(self, plan: Plan, weights: Arrays, slots: int) -> None:
        self.plan, self.slots = plan, slots
        self._fixed: dict[str, Bytes] = {}
        for program in plan.programs.values():
            for name, buffer in program.buffers.items():
                if buffer.place == "weight" and name not in self._fixed:
                    self._fixed[name] = aligned(buffer.nbytes({}))
                    self._fixed[name][:] = np.ascontiguousarray(weights[name]).reshape(-1).view(np.uint8)
                if buffer.place == "cache" and name not in self._fixed:
                    self._fixed[name] = aligned(buffer.nbytes({"slots": slots}))
                    self._fixed[name][:] = 0xFF
        arena = max(p.arena_bytes for p in plan.programs.values())
        self._arena = aligned(arena)

    @property
    def cache(self) -> NDArray[Any]:
        """The cache [layers, slots, width], in place, in the plan's own dtype."""
        layers, _, width = next(p.buffers["cache"].shape for p in self.plan.programs.values())
        held: NDArray[Any] = self._fixed["cache"].view(FLOATS[self.plan.dtype])
        return held.reshape(layers, self.slots, width)  # type: ignore[arg-type]

    def write_rows(self, at: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Cache rows [layers, n, C] into rows ``at`` [n] of every layer's cache."""
        self.cache[:, at] = rows.astype(self.cache.dtype)

    def read_rows(self, at: NDArray[np.int64]) -> NDArray[np.float32]:
        """The inverse, float32 [layers, n, C]."""
        found: NDArray[np.float32] = self.cache[:, at].astype(np.float32)
        return found

    def close(self) -> None:
        self._fixed = {}

    def run(
        self, name: str, symbols: Mapping[str, int], inputs: Arrays, outputs: Sequence[str] | None = None
    ) -> Arrays:
        """Execute program ``name`` -> ``outputs``, None for all. ``inputs`` by name.

        Raises AccessError for a launch that touches what is not its own.
        """
        program, sizes = self.plan.programs[name], {**symbols, "slots": self.slots}
        memory = {n: self._place(n, b, sizes, inputs) for n, b in program.buffers.items()}
        begun: set[str] = set()
        for launch in program.launches:
            used = {a.buffer for a in launch.args if isinstance(a, Pointer)} - begun
            for buffer in used:
                if program.buffers[buffer].place == "arena":
                    memory[buffer][:] = 0xFF
            begun |= used
            self._launch(program, launch, memory, sizes)
        wanted = [n for n, b in program.buffers.items() if b.place == "output"] if outputs is None else outputs
        return {n: self._array(memory[n], program.buffers[n], sizes) for n in wanted}

    def _place(self, name: str, buffer: Buffer, sizes: Mapping[str, int], inputs: Arrays) -> Bytes:
        nbytes = buffer.nbytes(sizes)
        if buffer.place == "arena":
            return self._arena[buffer.offset : buffer.offset + nbytes]
        if buffer.place in ("weight", "cache"):
            return self._fixed[name]
        out = aligned(nbytes)
        if buffer.place == "output":
            out[:] = 0xFF
        else:
            given = np.ascontiguousarray(inputs[name], NUMPY[buffer.dtype])
            if given.nbytes != nbytes:
                raise ValueError(f"input {name} is {given.shape}, {nbytes} bytes are expected")
            out[:] = given.reshape(-1).view(np.uint8)
        return out

    def _launch(
        self, program: PlanProgram, launch: Launch, memory: Mapping[str, Bytes], sizes: Mapping[str, int]
    ) -> None:
        entry = self.plan.kernels[launch.kernel]
        source = KERNELS[entry.kernel]
        reach, args = Memory(), dict[str, tuple[str, int | float]]()
        for name, kind, claim, arg in zip(source.args, entry.args, entry.aligned, launch.args, strict=True):
            if isinstance(arg, Pointer):
                start = memory[arg.buffer].ctypes.data
                reach.add(start, len(memory[arg.buffer]))
                value = start + evaluate(arg.offset, sizes)
            else:
                value = 0 if arg is None else evaluate(arg, sizes)
            if claim and value % 16:
                raise AccessError(f"{launch.what}: argument {name} of {entry.kernel} is {value}, no multiple of 16")
            args[name] = (kind, value)
        grid = [evaluate(g, sizes) for g in launch.grid]
        try:
            run(source.fn, args, entry.constants, grid, reach)
        except AccessError as e:
            raise AccessError(f"{program.phase}, {launch.what}: {e}") from None

    @staticmethod
    def _array(data: Bytes, buffer: Buffer, sizes: Mapping[str, int]) -> NDArray[Any]:
        return data.view(NUMPY[buffer.dtype]).reshape([evaluate(d, sizes) for d in buffer.shape])

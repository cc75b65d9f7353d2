"""A `Driver` on the host: kernels by the interpreter, at once, on memory of its own. For dry runs at toy sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.backends.cuda.host import aligned
from dsv2_compile.kernels.gpu.interpret import Memory
from dsv2_compile.kernels.gpu.interpret import run as interpret
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.plan.plan import Plan
from dsv2_compile.runtime.native import cuda, cuda_core

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """What a cubin was compiled from. ``args``: name -> type."""

    fn: Any
    args: Mapping[str, str]
    constants: Mapping[str, int | float | bool]


class HostDriver:
    """``sources``: what each cubin, by its bytes, is run from. Kernels may touch what `alloc` gave, nothing else."""

    name, version = "the host, through the interpreter", "0"

    def __init__(self, capability: str) -> None:
        self.capability = capability
        self.sources: dict[bytes, Source] = {}
        self._blocks: dict[int, Bytes] = {}
        self._captured: list[Callable[[], None]] | None = None
        self._clock: dict[int, float] = {}

    def activate(self) -> None: ...

    def memory(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def alloc(self, nbytes: int) -> int:
        block = aligned(nbytes)
        address = int(block.ctypes.data)
        self._blocks[address] = block
        return address

    def block(self, address: int) -> Bytes:
        return self._blocks[address]

    def free(self, address: int) -> None:
        del self._blocks[address]

    def pinned(self, nbytes: int) -> Bytes:
        return np.empty(nbytes, np.uint8)

    def _at(self, address: int, nbytes: int) -> Bytes:
        for start, block in self._blocks.items():
            if start <= address and address + nbytes <= start + len(block):
                return block[address - start : address - start + nbytes]
        raise ValueError(f"{nbytes} bytes at {address} are in no block")

    def copy_in(self, address: int, host: NDArray[Any]) -> None:
        self._at(address, host.nbytes)[:] = host.reshape(-1).view(np.uint8)

    def copy_out(self, host: NDArray[Any], address: int) -> None:
        host.reshape(-1).view(np.uint8)[:] = self._at(address, host.nbytes)

    def fill(self, address: int, value: int, nbytes: int) -> None:
        self._at(address, nbytes)[:] = value

    def load(self, image: bytes, symbol: str, shared: int) -> Source:
        return self.sources[image]

    def widths(self, kernel: Source) -> tuple[int, ...] | None:
        return None

    def launch(
        self, kernel: Source, grid: tuple[int, int, int], threads: int, shared: int, args: Sequence[int | np.int32]
    ) -> None:
        values = {n: (kind, int(v)) for (n, kind), v in zip(kernel.args.items(), args[:-2], strict=True)}

        def work() -> None:
            reach = Memory()
            for address, block in self._blocks.items():
                reach.add(address, len(block))
            interpret(kernel.fn, values, kernel.constants, grid, reach)

        self._do(work)

    def _do(self, work: Callable[[], None]) -> None:
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def capture(self, work: Callable[[], None]) -> list[Callable[[], None]]:
        made: list[Callable[[], None]] = []
        self._captured = made
        try:
            work()
        finally:
            self._captured = None
        return made

    def replay(self, graph: list[Callable[[], None]]) -> None:
        for work in graph:
            work()

    def discard(self, graph: list[Callable[[], None]]) -> None: ...

    def events(self, count: int) -> list[int]:
        return list(range(count))

    def record(self, event: int) -> None:
        self._do(lambda: self._clock.__setitem__(event, time.perf_counter()))

    def elapsed(self, start: int, end: int) -> float:
        return (self._clock[end] - self._clock[start]) * 1e3

    def sync(self) -> None: ...

    def close(self) -> None: ...


def sources_of(plan: Plan, root: Path) -> dict[bytes, Source]:
    """What the cubins of an engine are run from on the host."""
    return {
        (root / entry.cubin).read_bytes(): Source(
            KERNELS[entry.kernel].fn, dict(zip(KERNELS[entry.kernel].args, entry.args, strict=True)), entry.constants
        )
        for entry in plan.kernels
    }


@contextmanager
def in_place_of_a_gpu(plan: Plan, root: Path) -> Iterator[HostDriver]:
    """Inside, executors open the host where they would open a GPU."""
    driver = HostDriver(plan.capability)
    driver.sources.update(sources_of(plan, root))
    with ExitStack() as stack:
        for module in (cuda, cuda_core):
            stack.enter_context(patch.object(module, "open_driver", lambda device: driver))
        yield driver

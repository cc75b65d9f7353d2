"""A driver that has no GPU. It keeps memory and an account of what it was asked for, and computes nothing: whatever
kernels were to write stays NaN, so that no test can take it for a result. All it is asked for is done when it is
waited for, as with a GPU: memory that is reused too early is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.backends.cuda.host import aligned
from dsv2_compile.kernels.gpu.interpret import Memory, run
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.plan.plan import Plan
from dsv2_compile.runtime.native.driver import DriverError

LAUNCH_MS = 1.0
"""What a launch takes on the clock of `RecordingDriver`."""
Bytes = NDArray[np.uint8]


class RecordingDriver:
    """``fails``: operation, or as "alloc 3" the third of them -> code of the DriverError that it raises. ``calls``:
    operations in the order they were asked for; ``ran``: launches in the order they were done, as (kernel, grid,
    threads, shared, args)."""

    name, version = "no GPU", "13.0"

    def __init__(self, capability: str = "sm_90", free: int = 1 << 40, fails: dict[str, str] | None = None) -> None:
        self.capability, self.free_bytes, self.fails = capability, free, fails or {}
        self.calls: list[tuple[Any, ...]] = []
        self.ran: list[tuple[Any, ...]] = []
        self.blocks: dict[int, Bytes] = {}
        self.parameters: dict[str, tuple[int, ...]] = {}
        self.closed = False
        self._queue: list[Callable[[], None]] = []
        self._captured: list[Callable[[], None]] | None = None
        self._clock = 0.0
        self._times: dict[int, float] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}

    def _call(self, operation: str, *what: Any) -> None:
        assert not self.closed, operation
        self.calls.append((operation, *what))
        for failing in (operation, f"{operation} {self.count(operation)}"):
            if failing in self.fails:
                raise DriverError(self.fails[failing], "as the test wants")

    def count(self, operation: str) -> int:
        return sum(c[0] == operation for c in self.calls)

    def activate(self) -> None:
        self._call("activate")

    def memory(self) -> tuple[int, int]:
        self._call("memory")
        return self.free_bytes, 1 << 41

    def alloc(self, nbytes: int) -> int:
        self._call("alloc", nbytes)
        block = aligned(nbytes)
        block[:] = 0
        self.blocks[block.ctypes.data] = block
        return block.ctypes.data

    def free(self, address: int) -> None:
        self._call("free", address)
        del self.blocks[address]

    def pinned(self, nbytes: int) -> Bytes:
        self._call("pinned", nbytes)
        return np.full(nbytes, 0xAA, np.uint8)

    def at(self, address: int, nbytes: int) -> Bytes:
        """So many bytes of a block; AssertionError if they are not all in one."""
        for start, block in self.blocks.items():
            if start <= address and address + nbytes <= start + len(block):
                return block[address - start : address - start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address} are in no block")

    def _enqueue(self, work: Callable[[], None]) -> None:
        (self._queue if self._captured is None else self._captured).append(work)

    def copy_in(self, address: int, host: NDArray[Any]) -> None:
        self._call("copy_in", address, host.nbytes)
        assert host.flags.c_contiguous and self._captured is None
        target = self.at(address, host.nbytes)
        self._enqueue(lambda: np.copyto(target, host.reshape(-1).view(np.uint8)))

    def copy_out(self, host: NDArray[Any], address: int) -> None:
        self._call("copy_out", address, host.nbytes)
        assert host.flags.c_contiguous and self._captured is None
        source = self.at(address, host.nbytes)
        self._enqueue(lambda: np.copyto(host.reshape(-1).view(np.uint8), source))

    def fill(self, address: int, value: int, nbytes: int) -> None:
        self._call("fill", address, value, nbytes)
        target = self.at(address, nbytes)
        self._enqueue(lambda: target.fill(value))

    def load(self, image: bytes, symbol: str, shared: int) -> int:
        self._call("load", image, symbol, shared)
        return int(image)

    def widths(self, kernel: int) -> tuple[int, ...] | None:
        return self.parameters.get(str(kernel))

    def launch(
        self, kernel: int, grid: tuple[int, int, int], threads: int, shared: int, args: Sequence[int | np.int32]
    ) -> None:
        self._call("launch", kernel, grid)
        assert min(grid) > 0 and {type(a) for a in args} <= {int, np.int32}, (grid, args)
        asked = (kernel, grid, threads, shared, tuple(args))
        self._enqueue(lambda: self._done(asked))

    def _done(self, asked: tuple[Any, ...]) -> None:
        self.ran.append(asked)
        self._clock += LAUNCH_MS
        self.execute(*asked)

    def execute(self, kernel: int, grid: tuple[int, ...], threads: int, shared: int, args: tuple[Any, ...]) -> None:
        """Nothing."""

    def capture(self, work: Callable[[], None]) -> int:
        self._call("capture")
        self._captured = []
        try:
            work()
            number = len(self._graphs)
            self._graphs[number] = self._captured
            return number
        finally:
            self._captured = None

    def replay(self, graph: int) -> None:
        self._call("replay", graph)
        for work in self._graphs[graph]:
            self._enqueue(work)

    def discard(self, graph: int) -> None:
        self._call("discard", graph)
        assert self._graphs[graph] is not None
        self._graphs[graph] = []

    def events(self, count: int) -> list[int]:
        self._call("events", count)
        return list(range(count))

    def record(self, event: int) -> None:
        self._call("record", event)

        def note() -> None:
            self._times[event] = self._clock

        self._enqueue(note)

    def elapsed(self, start: int, end: int) -> float:
        assert not self._queue, "not waited for"
        return self._times[end] - self._times[start]

    def sync(self) -> None:
        self._call("sync")
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class InterpretingDriver(RecordingDriver):
    """Executes launches of ``plan`` on the host, kernel by kernel, for small models. A kernel may touch every block
    that is held, and nothing else. The two scratch addresses must be null: no kernel that is interpreted has any."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.capability)
        self._plan = plan

    def execute(self, kernel: int, grid: tuple[int, ...], threads: int, shared: int, args: tuple[Any, ...]) -> None:
        entry = self._plan.kernels[kernel]
        source = KERNELS[entry.kernel]
        assert args[-2:] == (0, 0)
        reach = Memory()
        for address, block in self.blocks.items():
            reach.add(address, len(block))
        typed = {n: (k, int(v)) for n, k, v in zip(source.args, entry.args, args[:-2], strict=True)}
        run(source.fn, typed, entry.constants, grid, reach)

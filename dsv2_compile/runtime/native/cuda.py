"""Runs the programs of a native plan on a GPU. Neither torch nor triton; CUDA packages only when one is opened."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.engine.placement import Placement
from dsv2_compile.errors import UsageError
from dsv2_compile.plan.dtypes import ITEM_BYTES, NUMPY
from dsv2_compile.plan.plan import Plan
from dsv2_compile.runtime.native import memory, opening, rows
from dsv2_compile.runtime.native.calls import Arrays, Call, prepare
from dsv2_compile.runtime.native.cuda_core import open_driver
from dsv2_compile.runtime.native.driver import DriverError, Event, Graph, explaining
from dsv2_compile.runtime.native.launches import Resolved, parameters, replayable, resolve, scratch_bytes
from dsv2_compile.runtime.native.weights import upload

STAGING_BYTES = 64 << 20


class CudaExecutor:
    """The plan of the engine in directory ``root``, whose files have been checked, on one GPU, with its own cache.

    ``weights``: where each weight lies. ``slots``: rows of the cache, a multiple of the page. ``graphs``: a step of
    decode is padded to 1, 2, 4, ... rows, captured the first time and replayed from then on; without, it is launched
    as it is, for checks. Calls from several threads wait for each other.

    IncompatibleError: this machine cannot run the engine. ResourceError: it does not fit the GPU's free memory.
    IntegrityError: the engine's files do not belong to its plan.
    """

    def __init__(
        self,
        plan: Plan,
        root: Path,
        weights: Mapping[str, Placement],
        slots: int,
        device: int = 0,
        graphs: bool = True,
    ) -> None:
        self.plan, self.slots = plan, slots
        self._lock = threading.Lock()
        self._blocks: dict[str, int] = {}
        self._graphs: dict[tuple[str, int], Graph] = {}
        self._replayed = {n for n, p in plan.programs.items() if graphs and replayable(p)}
        self._cache = memory.cache_buffer(plan)
        self._weights = memory.weight_layout(plan, weights)
        self.needs = memory.needs(plan, self._weights, slots, scratch_bytes(plan, slots))
        self._driver = open_driver(device)
        self._open = True
        try:
            opening.require_architecture(self._driver, plan.capability, plan.target)
            self._kernels = [opening.load(self._driver, root, entry) for entry in plan.kernels]
            self._blocks = opening.reserve(self._driver, self.needs)
            with explaining("take the weights"):
                self._host = self._driver.pinned(max(STAGING_BYTES, self.needs.inputs, self.needs.outputs))
                upload(self._driver, root, self._weights.reads, self._blocks["weights"], self._host)
                for purpose in ("cache", "arena"):
                    self._driver.fill(self._blocks[purpose], 0xFF, max(getattr(self.needs, purpose), 1))
                self._driver.sync()
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> Mapping[str, int]:
        """Where in the GPU's memory the block for each purpose of `needs` begins."""
        return self._blocks

    def run(
        self, name: str, symbols: Mapping[str, int], inputs: Arrays, outputs: Sequence[str] | None = None
    ) -> Arrays:
        """Execute program ``name`` -> ``outputs``, None for all; others stay on the GPU. ``inputs`` by name. What it
        adds goes to the cache."""
        with self._using(f"run {name}"):
            call = self._call(name, symbols, inputs)
            self._upload(call)
            if total := call.area("output")[1]:
                self._driver.fill(self._blocks["outputs"], 0xFF, total)  # NaN: what nothing writes is seen
            self._execute(call)
            return self._download(call, outputs)

    def write_rows(self, at: NDArray[np.int64], values: rows.Floats) -> None:
        """Cache rows [layers, n, C] into rows ``at`` [n] of every layer's cache."""
        stored = rows.TO_DEVICE[self._cache.dtype](values)
        with self._using("write the cache"):
            for address, part in self._rows(at, stored):
                self._driver.copy_in(address, part)
            self._driver.sync()

    def read_rows(self, at: NDArray[np.int64]) -> rows.Floats:
        """The inverse, float32 [layers, n, C]."""
        layers, _, width = memory.shape(self._cache, {"slots": self.slots})
        stored = np.empty((layers, len(at), width), NUMPY[self._cache.dtype])
        with self._using("read the cache"):
            for address, part in self._rows(at, stored):
                self._driver.copy_out(part, address)
            self._driver.sync()
        return rows.FROM_DEVICE[self._cache.dtype](stored)

    def time(self, name: str, symbols: Mapping[str, int], inputs: Arrays, repeats: int) -> list[float]:
        """Milliseconds between the GPU's events around each of ``repeats`` runs, after two that are not measured.

        Launches that are not replayed count with the gaps that the host leaves between them.
        """
        with self._using(f"time {name}"):
            call = self._call(name, symbols, inputs)
            self._upload(call)
            for _ in range(2):
                self._execute(call)
            events = self._driver.events(2 * repeats)
            for start, end in zip(events[::2], events[1::2], strict=True):
                self._driver.record(start)
                self._execute(call)
                self._driver.record(end)
            self._driver.sync()
            return [self._driver.elapsed(start, end) for start, end in zip(events[::2], events[1::2], strict=True)]

    def profile(self, name: str, symbols: Mapping[str, int], inputs: Arrays) -> list[tuple[str, float]]:
        """What each launch computes and its milliseconds, from one graph of the launches with an event after each, so
        that the host's gaps do not count. An event takes a little time too: sums exceed what `time` finds."""
        with self._using(f"profile {name}"):
            call = self._call(name, symbols, inputs)
            self._upload(call)
            launches = list(self._launches(call))
            self._launch(launches)
            events = self._driver.events(len(launches) + 1)
            graph = self._driver.capture(lambda: self._marked(launches, events))
            try:
                self._driver.replay(graph)
                self._driver.sync()
            finally:
                self._driver.discard(graph)
            spans = zip(launches, events[:-1], events[1:], strict=True)
            return [(x.what, self._driver.elapsed(start, end)) for x, start, end in spans]

    def close(self) -> None:
        """Give the GPU's memory back; later calls are UsageErrors. Closing twice is harmless."""
        with self._lock:
            if self._open:
                self._open = False
                with suppress(DriverError):  # a GPU that faulted frees nothing before the process ends
                    self._driver.activate()
                    self._driver.sync()
                    for graph in self._graphs.values():
                        self._driver.discard(graph)
                    for address in self._blocks.values():
                        self._driver.free(address)
                self._kernels = []
                self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _using(self, action: str) -> Iterator[None]:
        with self._lock:
            if not self._open:
                raise UsageError("The engine is closed.", "Load it again with Engine.load().")
            with explaining(action):
                self._driver.activate()
                yield

    def _call(self, name: str, symbols: Mapping[str, int], inputs: Arrays) -> Call:
        return prepare(name, self.plan.programs[name], self.slots, symbols, inputs, name in self._replayed)

    def _upload(self, call: Call) -> None:
        """All inputs in one copy; where they lie follows from the sizes alone, as a graph needs it."""
        offsets, total = call.area("input")
        for name, offset in offsets.items():
            data = call.inputs[name].reshape(-1).view(np.uint8)
            self._host[offset : offset + len(data)] = data
        if total:
            self._driver.copy_in(self._blocks["inputs"], self._host[:total])

    def _execute(self, call: Call) -> None:
        """A step that is captured is launched first: a kernel's first launch may load it, which no capture allows."""
        key = call.name, call.sizes["rows"]
        if call.replayed and key in self._graphs:
            self._driver.replay(self._graphs[key])
            return
        self._launch(self._launches(call))
        if call.replayed:
            self._graphs[key] = self._driver.capture(lambda: self._launch(self._launches(call)))

    def _launches(self, call: Call) -> Iterator[Resolved]:
        addresses = call.addresses(self._blocks, self._weights.offsets)
        scratch = self._blocks["scratch"], self.needs.scratch
        return resolve(self.plan, call.program, call.sizes, addresses, scratch)

    def _launch(self, launches: Iterable[Resolved]) -> None:
        for x in launches:
            args = parameters(self.plan.kernels[x.kernel], x.args)
            self._driver.launch(self._kernels[x.kernel], x.grid, x.threads, x.shared, args)

    def _marked(self, launches: list[Resolved], events: list[Event]) -> None:
        self._driver.record(events[0])
        for launch, event in zip(launches, events[1:], strict=True):
            self._launch([launch])
            self._driver.record(event)

    def _download(self, call: Call, outputs: Sequence[str] | None) -> Arrays:
        """Of each output as many of its first rows as were asked for. The inputs' host memory is free by then: all
        is done in the order of the stream."""
        found, offsets = {}, call.area("output")[0]
        for name in offsets if outputs is None else outputs:
            offset = offsets[name]
            buffer = call.program.buffers[name]
            host = self._host[offset : offset + buffer.nbytes(call.asked)]
            self._driver.copy_out(host, self._blocks["outputs"] + offset)
            found[name] = host.view(NUMPY[buffer.dtype]).reshape(memory.cut(buffer, call.asked, call.sizes))
        self._driver.sync()
        return {name: values.copy() for name, values in found.items()}

    def _rows(self, at: NDArray[np.int64], stored: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Address and part of ``stored`` [layers, len(at), C] of every stretch of neighbours among the rows ``at``."""
        layers, slots, width = memory.shape(self._cache, {"slots": self.slots})
        inside = len(at) == 0 or (at.min() >= 0 and at.max() < slots)
        if not inside or stored.shape != (layers, len(at), width):
            raise ValueError(f"rows {stored.shape} are no rows of a cache {(layers, slots, width)}, or lie outside it")
        nbytes = width * ITEM_BYTES[self._cache.dtype]
        for layer in range(layers):
            for start, row, count in rows.runs(at):
                yield self._blocks["cache"] + (layer * slots + row) * nbytes, stored[layer, start : start + count]

"""A GPU under measurement, or the host in its place: guarded checks, times of graph replays with cold caches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsv2_compile.autotune.measure.answers import checked_case, held_out_cases, timed_case
from dsv2_compile.autotune.measure.jobs import Step, Subject
from dsv2_compile.autotune.measure.nvml import Nvml
from dsv2_compile.autotune.measure.stats import median
from dsv2_compile.devices.device import Argument, Device, Work
from dsv2_compile.devices.guarded import Guarded
from dsv2_compile.devices.host_driver import HostDriver
from dsv2_compile.kernels.gpu.cases import case_for, follower
from dsv2_compile.kernels.gpu.check import Case, Tensors, Violation, check, prepared
from dsv2_compile.kernels.gpu.kernel import Call
from dsv2_compile.runtime.native.cuda_core import open_driver
from dsv2_compile.targets import Target

SECONDS = 1.0
"""Of replays in one go, at most."""
COPIED, COPIED_ON_HOST = 128 << 20, 1 << 10
"""Bytes that the reference copy reads, and writes."""
COPY_REPEATS = 10
COLD = 3
"""Copies of a call's tensors are this many times as large as the L2, and there are as many, while they take no more
than `FEW_BYTES`."""
FEW_BYTES, MOST_COPIES = 4 << 30, 256
_KEPT = 2
"""Configurations whose launches are kept ready, to time them in turns."""


class DeviceBench:
    """A `Bench`. ``copy``: the launch that serves as the reference of speed."""

    def __init__(self, device: Device, copy: Step) -> None:
        self._device = device
        self._nvml = Nvml()
        self._call: Call | None = None
        self._inputs: list[dict[str, int]] = []
        self._ready: dict[Subject, tuple[list[Work], list[int]]] = {}
        self._copy, self._copied = self._reference_copy(copy)
        self._fastest = float("inf")

    # answers

    def check(self, subject: Subject, seed: int) -> str:
        return self._wrong(subject, checked_case(subject), seed)

    def held_out(self, subject: Subject, shape: int, seed: int) -> str:
        return self._wrong(subject, held_out_cases(subject)[shape], seed)

    def _wrong(self, subject: Subject, case: Case, seed: int) -> str:
        cubins = {s.name: s.cubin for s in subject.steps if s.cubin is not None}
        then = subject.steps[1].config if len(subject.steps) > 1 else None
        try:
            errors = check(case, subject.call.dtype, subject.steps[0].config, Guarded(self._device, cubins), seed, then)
        except Violation as e:
            return f"{case.name}: {e}"
        failed = [
            f"{e.output}: l2 {e.l2:.2e} of {e.limit_l2:.2e}, largest {e.largest:.2e} of {e.limit_largest:.2e}, "
            f"{e.mistakes} mistakes"
            for e in errors
            if not e.passed
        ]
        return f"{case.name}: {'; '.join(failed)}" if failed else ""

    def race(self, subject: Subject, repeats: int, seconds: float) -> tuple[str, int]:
        """All outputs, and inputs that are updated, are as they were before every run."""
        device, end = self._device, time.monotonic() + seconds
        case = timed_case(subject)
        tensors = _tensors(subject, case)
        written = {n for s in subject.steps for n in s.kernel.outputs} & tensors.keys()
        given = {n: _bytes(t) for n, t in tensors.items() if t is not None}
        places = {n: self._put(b) for n, b in given.items()}
        first: dict[str, NDArray[np.uint8]] = {}
        try:
            work = self._launches(subject, case, places)
            for run in range(1, repeats + 1):
                for name in written & given.keys():
                    device.driver.copy_in(places[name], given[name])
                work()
                found = {n: np.empty_like(given[n]) for n in written & given.keys()}
                for name, host in found.items():
                    device.driver.copy_out(host, places[name])
                device.driver.sync()
                other = [n for n in first if not np.array_equal(first[n], found[n])]
                if other:
                    return f"{', '.join(sorted(other))} is not the same in run {run}", run
                first = first or found
                if time.monotonic() > end:
                    return "", run
        finally:
            for address in places.values():
                device.driver.free(address)
        return "", repeats

    # times

    def times(self, subject: Subject, repeats: int) -> list[float]:
        return [ms * 1e3 for ms in self._device.times(self._works(subject), SECONDS, repeats)]

    def _works(self, subject: Subject) -> list[Work]:
        """A call on each of several copies of its tensors, ready to be launched."""
        if subject.call != self._call:
            self._forget()
            self._call = subject.call
        if subject not in self._ready:
            while len(self._ready) >= _KEPT:
                self._drop(next(iter(self._ready)))
            self._ready[subject] = self._prepare(subject)
        return self._ready[subject][0]

    def _prepare(self, subject: Subject) -> tuple[list[Work], list[int]]:
        case = timed_case(subject)
        tensors = {n: _bytes(t) for n, t in _tensors(subject, case).items() if t is not None}
        names = set(case.inputs(torch.Generator().manual_seed(0))) & tensors.keys()
        count = copies(sum(len(b) for b in tensors.values()), self._device.target.l2)
        while len(self._inputs) < count:
            self._inputs.append({n: self._put(tensors[n]) for n in names})
        works, own = list[Work](), list[int]()
        for shared in self._inputs[:count]:
            places = shared | {n: self._put(b) for n, b in tensors.items() if n not in names}
            own += [address for n, address in places.items() if n not in names]
            works.append(self._launches(subject, case, places))
        for work in works:  # a first launch may load the kernel, which no capture allows
            work()
        self._device.driver.sync()
        return works, own

    def _launches(self, subject: Subject, case: Case, places: Mapping[str, Argument]) -> Work:
        sizes = {**dict(subject.call.sizes), **case.sizes}
        works = [
            self._device.call(s.kernel, s.dims, s.config, subject.call.dtype, sizes, places, s.cubin)
            for s in subject.steps
        ]

        def work() -> None:
            for one in works:
                one()

        return work

    def _put(self, value: NDArray[np.uint8]) -> int:
        address = self._device.driver.alloc(max(len(value), 1))
        if len(value):
            self._device.driver.copy_in(address, value)
            self._device.driver.sync()
        return address

    def _drop(self, subject: Subject) -> None:
        for address in self._ready.pop(subject)[1]:
            self._device.driver.free(address)

    def _forget(self) -> None:
        for subject in list(self._ready):
            self._drop(subject)
        for places in self._inputs:
            for address in places.values():
                self._device.driver.free(address)
        self._inputs = []

    # the reference of speed

    def _reference_copy(self, copy: Step) -> tuple[list[Work], int]:
        """Rows of a table, one after the other, by the kernel that picks rows."""
        device, n = self._device, int(copy.dims["N"])
        nbytes = COPIED_ON_HOST if isinstance(device.driver, HostDriver) else COPIED
        rows = max(nbytes // (2 * n), 1)
        source = torch.randn(rows, n, generator=torch.Generator().manual_seed(0)).bfloat16()
        args: dict[str, Argument] = {
            "tokens": self._put(_bytes(torch.arange(rows, dtype=torch.int32))),
            "table": self._put(_bytes(source)),
            "out": self._put(_bytes(source)),
        }
        work = device.call(copy.kernel, copy.dims, copy.config, "bf16", {"rows": rows}, args, copy.cubin)
        work()
        device.driver.sync()
        return [work], 4 * n * rows

    def reference(self) -> float:
        found = median(self._device.times(self._copy, SECONDS, COPY_REPEATS)) * 1e3
        self._fastest = min(self._fastest, found)
        return found

    def bandwidth(self) -> float:
        return self._copied / (self._fastest * 1e-6)

    def facts(self) -> dict[str, Any]:
        return {"rotated": len(self._inputs), **self._nvml.facts()}

    def sound(self) -> None:
        self._device.driver.sync()


def copies(nbytes: int, l2: int) -> int:
    """How many copies of a call's tensors are used in turn, so that none is in the L2 when its turn comes again."""
    cold = min(-(-COLD * l2 // max(nbytes, 1)), MOST_COPIES)
    return max(1, cold, COLD if COLD * nbytes <= FEW_BYTES else 1)


def _tensors(subject: Subject, case: Case) -> Tensors:
    """Of all steps. What a kernel that follows is not given by the first one, it writes."""
    first = subject.steps[0]
    found = prepared(case, subject.call.dtype, first.config)
    for step in subject.steps[1:]:
        call = follower(subject.call, first.config)
        assert call is not None
        theirs = prepared(case_for(call), call.dtype, step.config)
        found |= {n: t for n, t in theirs.items() if found.get(n) is None}
    return found


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return found


def open_bench(gpu: Target, copy: Step, host: bool) -> DeviceBench:
    """IncompatibleError if there is no GPU that can be used."""
    if host:
        return DeviceBench(Device(HostDriver(gpu.capability), "cpu", replace(gpu, l2=0), repeats=2), copy)
    return DeviceBench(Device(open_driver(0), "cpu", gpu, repeats=3), copy)

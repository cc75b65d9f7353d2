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
from dsv2_compile.autotune.measure.jobs import Subject
from dsv2_compile.autotune.measure.nvml import Nvml
from dsv2_compile.autotune.measure.speed import Reference, Speed, as_bytes, put
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
COLD = 3
"""Copies of a call's tensors are this many times as large as the L2, and there are as many, while they take no more
than `FEW_BYTES`."""
FEW_BYTES, MOST_COPIES = 4 << 30, 256
_KEPT = 2
"""Configurations whose launches are kept ready, to time them in turns."""


class DeviceBench:
    """A `Bench`."""

    def __init__(self, device: Device, speed: Speed) -> None:
        self._device, self._speed = device, speed
        self._nvml = Nvml()
        self._call: Call | None = None
        self._inputs: list[dict[str, int]] = []
        self._ready: dict[Subject, tuple[list[Work], list[int]]] = {}

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
        failed = [str(e) for e in errors if not e.passed]
        return f"{case.name}: {'; '.join(failed)}" if failed else ""

    def race(self, subject: Subject, repeats: int, seconds: float) -> tuple[str, int]:
        """All outputs, and inputs that are updated, are as they were before every run."""
        device, end = self._device, time.monotonic() + seconds
        case = timed_case(subject)
        tensors = _tensors(subject, case)
        written = {n for s in subject.steps for n in s.kernel.outputs} & tensors.keys()
        given = {n: as_bytes(t) for n, t in tensors.items() if t is not None}
        places = {n: put(self._device, b) for n, b in given.items()}
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

    def timed(self, subject: Subject) -> Call:
        case = timed_case(subject)
        decided = case.decided(case.inputs(torch.Generator().manual_seed(0)))
        return replace(subject.call, sizes=tuple(sorted({**dict(subject.call.sizes), **decided}.items())))

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
        tensors = {n: as_bytes(t) for n, t in _tensors(subject, case).items() if t is not None}
        names = set(case.inputs(torch.Generator().manual_seed(0))) & tensors.keys()
        count = copies(sum(len(b) for b in tensors.values()), self._device.target.l2)
        while len(self._inputs) < count:
            self._inputs.append({n: put(self._device, tensors[n]) for n in names})
        works, own = list[Work](), list[int]()
        for shared in self._inputs[:count]:
            places = shared | {n: put(self._device, b) for n, b in tensors.items() if n not in names}
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

    # the device

    def reference(self) -> dict[str, float]:
        return self._speed.times()

    def rates(self) -> tuple[float, float]:
        return self._speed.rates()

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


def open_bench(gpu: Target, references: Mapping[str, Reference], host: bool) -> DeviceBench:
    """IncompatibleError if there is no GPU that can be used."""
    if host:
        device = Device(HostDriver(gpu.capability), "cpu", replace(gpu, l2=0), repeats=2)
    else:
        device = Device(open_driver(0), "cpu", gpu, repeats=3)
    return DeviceBench(device, Speed(device, references))

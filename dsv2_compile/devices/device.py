"""A GPU, or the host in its place: memory that torch and kernels share, kernels, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from dsv2_compile.backends.cuda.compile import compile_all, request
from dsv2_compile.devices.host_driver import HostDriver, Source
from dsv2_compile.kernels.gpu.aot import Cubin
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Kernel
from dsv2_compile.plan.expr import evaluate
from dsv2_compile.runtime.native.cuda_core import open_driver
from dsv2_compile.runtime.native.driver import Driver
from dsv2_compile.runtime.native.launches import WARP
from dsv2_compile.targets import Target

Work: TypeAlias = Callable[[], Any]
Argument: TypeAlias = "torch.Tensor | int | None"
"""A tensor, an address or a number by the argument's type; None is a null pointer."""
_PIECE = 1 << 30
"""Elements that are filled at once."""


class Refused(Exception):
    """A kernel that cannot be compiled, or not launched on this GPU."""


@dataclass(frozen=True)
class Code:
    """A kernel that is loaded. ``args``: name -> type; ``shared``, ``scratch``: bytes per block."""

    handle: Any
    args: Mapping[str, str]
    threads: int
    shared: int
    scratch: int


class Device:
    """``torch``: where its tensors live. ``target``: what kernels are compiled for and defaults chosen by.
    ``repeats``: how often a launch is repeated to see whether it gives the same bits."""

    def __init__(self, driver: Driver, where: str, target: Target, repeats: int) -> None:
        self.driver, self.torch, self.target, self.repeats = driver, torch.device(where), target, repeats
        self._codes: dict[Any, Code] = {}
        self._held: list[int] = []

    def code(self, kernel: Kernel, dims: Dims, config: Config, dtype: str, cubin: Cubin | None = None) -> Code:
        """``cubin``: what was compiled already. Raises `Refused`."""
        key = kernel.name, id(kernel), tuple(sorted(dims.items())), tuple(sorted(config.items())), dtype, cubin
        if key not in self._codes:
            self._codes[key] = self._load(kernel, dims, config, dtype, cubin)
        return self._codes[key]

    def _load(self, kernel: Kernel, dims: Dims, config: Config, dtype: str, cubin: Cubin | None) -> Code:
        args = {n: f"*{dtype}" if kind == "*T" else kind for n, kind in kernel.args.items()}
        if isinstance(self.driver, HostDriver):
            image = len(self.driver.sources).to_bytes(4, "little")
            self.driver.sources[image] = Source(kernel.fn, args, kernel.constants(dims, config))
            return Code(self.driver.load(image, kernel.name, 0), args, 128, 0, 0)
        if cubin is None:
            asked = request(kernel, dims, config, dtype)
            (made,) = compile_all([asked], self.target, workers=1, kernels={kernel.name: kernel})
            if not made.ok or made.cubin is None:
                raise Refused(f"{made.reason} {made.log[-300:]}".strip())
            cubin = made.cubin
        handle = self.driver.load(cubin.image, cubin.symbol, cubin.shared)
        return Code(handle, args, cubin.warps * WARP, cubin.shared, cubin.scratch)

    def launch(self, code: Code, grid: Sequence[int], args: Mapping[str, Argument]) -> None:
        """Asynchronous. ``args`` by name."""
        x, y, z = (*grid, 1, 1)[:3]
        if not x * y * z:
            return
        scratch = self._area(code.scratch * x * y * z) if code.scratch else 0
        values = [_value(kind, args.get(name)) for name, kind in code.args.items()]
        self.driver.launch(code.handle, (x, y, z), code.threads, code.shared, [*values, scratch, 0])

    def call(
        self,
        kernel: Kernel,
        dims: Dims,
        config: Config,
        dtype: str,
        sizes: Mapping[str, int],
        args: Mapping[str, Argument],
        cubin: Cubin | None = None,
    ) -> Work:
        """A launch, ready to be made as often as wanted. Raises `Refused`."""
        code = self.code(kernel, dims, config, dtype, cubin)
        grid = [evaluate(g, {}) for g in kernel.grid(dims, config, sizes)]
        bound = {n: args.get(n) if kind.startswith("*") else sizes[n] for n, kind in kernel.args.items()}
        return lambda: self.launch(code, grid, bound)

    def _area(self, nbytes: int) -> int:
        """Scratch, kept as long as the device: a captured launch holds its address."""
        self._held.append(self.driver.alloc(nbytes))
        return self._held[-1]

    def empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Uninitialised, at a multiple of 256 bytes."""
        if not isinstance(self.driver, HostDriver):
            return torch.empty(shape, dtype=dtype, device=self.torch)
        count = int(np.prod(shape))
        block = self.driver.block(self.driver.alloc(max(count * dtype.itemsize, 1)))
        return torch.from_numpy(block[: count * dtype.itemsize]).view(dtype).view(shape)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
        out = self.empty(*shape, dtype=dtype)
        for piece in out.view(-1).split(_PIECE):
            piece.normal_(0.0, scale)
        return out

    def put(self, value: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor of the host."""
        return self.empty(*value.shape, dtype=value.dtype).copy_(value)

    def randomise(self, address: int, nbytes: int, dtype: torch.dtype, scale: float) -> None:
        """Fill memory of the driver with normal numbers."""
        if isinstance(self.driver, HostDriver):
            held = torch.from_numpy(self.driver.block(address)[:nbytes])
        else:
            held = torch.as_tensor(_Raw(address, nbytes), device=self.torch)
        for piece in held.view(dtype).split(_PIECE):
            piece.normal_(0.0, scale)
        self.fence()

    def fence(self) -> None:
        """Everything that was asked of torch and of the driver is done. Raises if the GPU has faulted."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize()
        self.driver.sync()

    def times(self, works: Sequence[Work], seconds: float, most: int) -> list[float]:
        """Milliseconds of one of ``works``, kernels of ours, in each replay of a graph of all of them."""
        self.fence()

        def all_of_them() -> None:
            for work in works:
                work()

        graph = self.driver.capture(all_of_them)
        start, end = self.driver.events(2)

        def replay() -> float:
            self.driver.record(start)
            self.driver.replay(graph)
            self.driver.record(end)
            self.driver.sync()
            return self.driver.elapsed(start, end) / len(works)

        try:
            return list(_repeated(replay, len(works), seconds, most))
        finally:
            self.driver.discard(graph)

    def torch_times(self, works: Sequence[Work], seconds: float, most: int) -> list[float]:
        """The same of work that torch does."""
        if self.torch.type != "cuda":
            return list(_repeated(lambda: _host_ms(works), len(works), seconds, most))
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            works[0]()
        self.fence()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for work in works:
                work()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def replay() -> float:
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / len(works)

        return list(_repeated(replay, len(works), seconds, most))

    def clear(self) -> None:
        """Give back what torch keeps for reuse."""
        if self.torch.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        with suppress(Exception):
            self.driver.close()


@dataclass(frozen=True)
class _Raw:
    """Memory of the driver, for torch."""

    address: int
    nbytes: int

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False), "version": 3}


def _value(kind: str, value: Argument) -> int | np.int32:
    if not kind.startswith("*"):
        assert isinstance(value, int), (kind, value)
        return np.int32(value)
    return value.data_ptr() if isinstance(value, torch.Tensor) else value or 0


def _repeated(once: Callable[[], float], works: int, seconds: float, most: int) -> Iterator[float]:
    """What ``once`` measures, after two times that do not count: about ``seconds`` of it, ``most`` times at most and
    three at least, if ``most`` allows."""
    once()
    first = max(once() * works / 1e3, 1e-6)
    for _ in range(min(most, max(3, int(seconds / first)))):
        yield once()


def _host_ms(works: Sequence[Work]) -> float:
    start = time.perf_counter()
    for work in works:
        work()
    return (time.perf_counter() - start) * 1e3 / len(works)


def open_device(gpu: Target, host: bool = False) -> Device:
    """IncompatibleError if there is no GPU that can be used."""
    if host:
        return Device(HostDriver(gpu.capability), "cpu", gpu, repeats=1)
    return Device(open_driver(0), "cuda", gpu, repeats=3)

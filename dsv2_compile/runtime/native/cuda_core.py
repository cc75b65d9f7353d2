"""The driver through cuda.core, and through cuda.bindings where cuda.core has nothing: memory and timing.

Nothing of either is imported before `open_driver`. Written for cuda-core 1.2 with cuda-bindings 12 or 13.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.errors import IncompatibleError
from dsv2_compile.runtime.native.driver import Bytes, Driver, DriverError, Event, Graph, Kernel, explaining

OLDEST = 12000
"""CUDA of the driver, as the driver counts: cuda.core needs it."""
STATIC_SHARED = 48 << 10
"""Bytes of shared memory that a block may have without being asked."""


def open_driver(device: int) -> Driver:
    """IncompatibleError if there is no cuda-core, no driver, no such GPU, or the driver is too old."""
    try:
        import cuda.core as core
        from cuda.bindings import driver as cu
    except ImportError as e:
        raise IncompatibleError(
            f"GPU engines need cuda-core and cuda-bindings, which cannot be imported: {e}.",
            "Install them: pip install 'dsv2-compile[cuda]'",
        ) from e
    with explaining("be looked for"):
        count = _devices(cu)
    if not 0 <= device < count:
        raise IncompatibleError(
            f"There is no GPU {device}: the driver finds {count}.",
            "Choose another device; nvidia-smi lists them, CUDA_VISIBLE_DEVICES may hide some.",
        )
    with explaining("be opened"):
        return CudaCore(core, cu, device)


def _devices(cu: Any) -> int:
    """How many GPUs there are, all else in order."""
    try:
        code = cu.cuInit(0)[0]
    except RuntimeError as e:  # of cuda.bindings, in words that change: the library was not found
        raise IncompatibleError(
            "There is no NVIDIA driver: libcuda.so.1 cannot be loaded.",
            "Install the driver, give the container the GPU, or load an engine built with --cpu.",
        ) from e
    if code.name == "CUDA_ERROR_NO_DEVICE":
        return 0
    version = _checked(cu, cu.cuDriverGetVersion())
    if version < OLDEST:
        raise IncompatibleError(
            f"The NVIDIA driver is for CUDA {_version(version)}, {_version(OLDEST)} is needed.", "Update the driver."
        )
    if int(code):
        raise IncompatibleError(
            f"The NVIDIA driver does not start: {code.name}.",
            "See what nvidia-smi says; after an update of the driver, restart the machine.",
        )
    return int(_checked(cu, cu.cuDeviceGetCount()))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _checked(cu: Any, result: tuple[Any, ...]) -> Any:
    """What a function of cuda.bindings returned. DriverError if it failed."""
    code, *values = result
    if int(code):
        found, text = cu.cuGetErrorString(code)
        raise DriverError(code.name, text.decode() if not int(found) and text else "")
    return values[0] if len(values) == 1 else tuple(values)


@contextmanager
def _core_errors() -> Iterator[None]:
    """cuda.core raises a class that it does not publish, with the driver's name for the error in its text."""
    try:
        yield
    except Exception as e:
        found = re.search(r"CUDA_ERROR_\w+", str(e))
        if isinstance(e, DriverError) or found is None:
            raise
        raise DriverError(found[0], str(e).removeprefix(found[0]).strip(": ")) from e


class CudaCore:
    """A `Driver`. From `open_driver`, which knows that ``device`` is there."""

    def __init__(self, core: Any, cu: Any, device: int) -> None:
        self._core, self._cu, self._number = core, cu, device
        self._pinned: list[int] = []
        self._events: list[Any] = []
        self._builder: Any = None
        with _core_errors():
            self.activate()
            self._device = core.Device(device)  # of this thread, and kept: with it goes the context
            self._stream = self._device.create_stream()
            self.name: str = self._device.name
            capability = self._device.compute_capability
        self.capability = f"sm_{capability.major}{capability.minor}"
        self.version = _version(self._do("cuDriverGetVersion"))

    def _do(self, function: str, *args: Any) -> Any:
        return _checked(self._cu, getattr(self._cu, function)(*args))

    def activate(self) -> None:
        with _core_errors():
            self._core.Device(self._number).set_current()  # there is one such object a thread

    def memory(self) -> tuple[int, int]:
        free, total = self._do("cuMemGetInfo")
        return int(free), int(total)

    def alloc(self, nbytes: int) -> int:
        return int(self._do("cuMemAlloc", nbytes))

    def free(self, address: int) -> None:
        self._do("cuMemFree", address)

    def pinned(self, nbytes: int) -> Bytes:
        address = int(self._do("cuMemAllocHost", nbytes))
        self._pinned.append(address)
        held: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        return held

    def copy_in(self, address: int, host: NDArray[Any]) -> None:
        self._do("cuMemcpyHtoDAsync", address, host.ctypes.data, host.nbytes, self._stream.handle)

    def copy_out(self, host: NDArray[Any], address: int) -> None:
        self._do("cuMemcpyDtoHAsync", host.ctypes.data, address, host.nbytes, self._stream.handle)

    def fill(self, address: int, value: int, nbytes: int) -> None:
        self._do("cuMemsetD8Async", address, value, nbytes, self._stream.handle)

    def load(self, image: bytes, symbol: str, shared: int) -> Kernel:
        with _core_errors():
            kernel = self._core.ObjectCode.from_cubin(image).get_kernel(symbol)
        if shared > STATIC_SHARED:
            most = self._cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._do("cuKernelSetAttribute", most, shared, kernel.handle, self._number)
        return kernel

    def widths(self, kernel: Kernel) -> tuple[int, ...] | None:
        with _core_errors():
            try:
                return tuple(p.size for p in kernel.arguments_info)
            except NotImplementedError:  # by drivers before CUDA 12.4
                return None

    def launch(
        self, kernel: Kernel, grid: tuple[int, int, int], threads: int, shared: int, args: Sequence[int | np.int32]
    ) -> None:
        config = self._core.LaunchConfig(grid=grid, block=threads, shmem_size=shared)
        with _core_errors():
            self._core.launch(self._stream if self._builder is None else self._builder, config, kernel, *args)

    def capture(self, work: Callable[[], None]) -> Graph:
        with _core_errors():
            builder = self._stream.create_graph_builder()
            try:
                builder.begin_building()
                self._builder = builder
                work()
                return builder.end_building().complete()
            finally:
                self._builder = None
                builder.close()

    def replay(self, graph: Graph) -> None:
        with _core_errors():
            graph.launch(self._stream)

    def discard(self, graph: Graph) -> None:
        graph.close()

    def events(self, count: int) -> list[Event]:
        while len(self._events) < count:
            self._events.append(self._do("cuEventCreate", 0))
        return self._events[:count]

    def record(self, event: Event) -> None:
        """In a captured graph as a node of its own, whose time can be read after a replay."""
        flags = self._cu.CUevent_record_flags
        flag = flags.CU_EVENT_RECORD_DEFAULT if self._builder is None else flags.CU_EVENT_RECORD_EXTERNAL
        self._do("cuEventRecordWithFlags", event, self._stream.handle, int(flag))

    def elapsed(self, start: Event, end: Event) -> float:
        return float(self._do("cuEventElapsedTime", start, end))

    def sync(self) -> None:
        with _core_errors():
            self._stream.sync()

    def close(self) -> None:
        """What the driver of a faulted GPU refuses to free is freed with the process."""
        for function, handles in (("cuEventDestroy", self._events), ("cuMemFreeHost", self._pinned)):
            while handles:
                getattr(self._cu, function)(handles.pop())
        self._stream.close()

"""What an executor needs of a GPU: a thin interface, and what its failures mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.errors import Dsv2Error, IncompatibleError, ResourceError

Bytes = NDArray[np.uint8]
Kernel: TypeAlias = Any
Graph: TypeAlias = Any
Event: TypeAlias = Any
"""Opaque."""

OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
_REFUSED = frozenset(
    f"CUDA_ERROR_{what}"
    for what in (
        "INVALID_IMAGE",
        "INVALID_SOURCE",
        "NO_BINARY_FOR_GPU",
        "INVALID_PTX",
        "UNSUPPORTED_PTX_VERSION",
        "JIT_COMPILER_NOT_FOUND",
    )
)
"""What a driver says of a cubin that it cannot read."""


class DriverError(Exception):
    """``code``: the driver's name for it, as CUDA_ERROR_OUT_OF_MEMORY."""

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(f"{code}: {text}" if text else code)
        self.code = code


class Driver(Protocol):
    """One GPU and one stream, in whose order everything happens; only `sync` waits for it.

    An address is a number. ``capability``: sm_90; ``version``: of CUDA, of the driver, as 13.0. All but `close` raise
    DriverError.
    """

    capability: str
    name: str
    version: str

    def activate(self) -> None:
        """Before anything else of a thread but the one that opened it, and harmless again."""

    def memory(self) -> tuple[int, int]:
        """Free bytes and all bytes."""

    def alloc(self, nbytes: int) -> int:
        """Address of so many bytes, at least 1, at a multiple of 256."""

    def free(self, address: int) -> None: ...

    def pinned(self, nbytes: int) -> Bytes:
        """Host memory that the GPU copies to and from by itself; freed by `close`."""

    def copy_in(self, address: int, host: NDArray[Any]) -> None:
        """``host`` is contiguous and stays as it is until `sync`."""

    def copy_out(self, host: NDArray[Any], address: int) -> None:
        """``host`` is contiguous and filled after `sync`."""

    def fill(self, address: int, value: int, nbytes: int) -> None:
        """Set every byte."""

    def load(self, image: bytes, symbol: str, shared: int) -> Kernel:
        """The kernel of a cubin, ready for ``shared`` bytes of dynamic shared memory."""

    def widths(self, kernel: Kernel) -> tuple[int, ...] | None:
        """Bytes of its parameters, None if the driver does not tell."""

    def launch(
        self, kernel: Kernel, grid: tuple[int, int, int], threads: int, shared: int, args: Sequence[int | np.int32]
    ) -> None: ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """What ``work`` launches and records, which is not done, as a graph for `replay`."""

    def replay(self, graph: Graph) -> None: ...

    def discard(self, graph: Graph) -> None: ...

    def events(self, count: int) -> list[Event]:
        """For `record`: the same ones each time, and more."""

    def record(self, event: Event) -> None: ...

    def elapsed(self, start: Event, end: Event) -> float:
        """Milliseconds between two recorded events, after `sync`."""

    def sync(self) -> None: ...

    def close(self) -> None:
        """Everything but what `alloc` gave."""


def explained(e: DriverError, action: str) -> Dsv2Error:
    """``action``: what failed, as in "could not ...". The architecture is known to be right."""
    if e.code == OUT_OF_MEMORY:
        return ResourceError(
            f"The GPU has no memory left to {action}.",
            "Open fewer or shorter sequences, or free memory on the GPU.",
        )
    if e.code in _REFUSED:
        return IncompatibleError(
            f"The GPU's driver could not {action}: {e.code}.",
            "Update the NVIDIA driver: it is older than the compiler that made the engine's kernels.",
        )
    return Dsv2Error(
        f"The GPU could not {action}: {str(e).rstrip('.')}.",
        "Report this as a bug, with the manifest; after a fault, start again.",
    )


@contextmanager
def explaining(action: str) -> Iterator[None]:
    try:
        yield
    except DriverError as e:
        raise explained(e, action) from e

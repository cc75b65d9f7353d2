"""A kernel under `kernels.gpu.check`, on a device: guard zones around its tensors, inputs that must stay as they are,
and the same bits every time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dsv2_compile.devices.device import Argument, Device
from dsv2_compile.kernels.gpu.aot import Cubin
from dsv2_compile.kernels.gpu.check import Tensors, Violation
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Kernel

GUARD = 64 << 10
"""Bytes before and behind every tensor, all ones: NaN to whoever reads them, -1 in integers."""
_ONES = 0xFF
PIECE = 8 << 20
"""Bytes that are read back and compared at a time: new memory costs more than the copy."""


@dataclass(frozen=True)
class _Held:
    address: int
    given: NDArray[np.uint8]


class Guarded:
    """`check.Launch` on ``device``. Raises `Violation`; reads outside of a tensor show as NaN in what is computed.
    ``cubins``: of kernels that are compiled already, by name."""

    def __init__(self, device: Device, cubins: Mapping[str, Cubin] | None = None) -> None:
        self.device, self._cubins = device, cubins or {}

    def __call__(
        self, kernel: Kernel, dims: Dims, config: Config, sizes: Mapping[str, int], dtype: str, tensors: Tensors
    ) -> None:
        device, driver = self.device, self.device.driver
        held = {
            n: _Held(driver.alloc(len(b) + 2 * GUARD), b) for n, t in tensors.items() if (b := _bytes(t)) is not None
        }
        try:
            addresses: dict[str, Argument] = {n: h.address + GUARD for n, h in held.items()}
            work = device.call(kernel, dims, config, dtype, sizes, addresses, self._cubins.get(kernel.name))
            first: dict[str, NDArray[np.uint8]] = {}
            for h in held.values():
                self._restore(h)
            for run in range(device.repeats):
                if run:
                    for name in held.keys() & set(kernel.outputs):
                        self._restore(held[name])
                driver.sync()
                work()
                found = {n: self._read(n, held[n]) for n in kernel.outputs if n in held}
                last = run + 1 == device.repeats
                other = [n for n in first if not same_bits(found[n], first[n])]
                if last or other:
                    self._require_untouched({n: h for n, h in held.items() if n not in kernel.outputs})
                if other:
                    raise Violation(f"{', '.join(other)} is not the same in every launch")
                first = first or found
        finally:
            for h in held.values():
                driver.free(h.address)
        for name in kernel.outputs:
            value = _bytes(tensors.get(name))
            if value is not None:
                value[:] = first[name]

    def _restore(self, held: _Held) -> None:
        driver = self.device.driver
        driver.fill(held.address, _ONES, len(held.given) + 2 * GUARD)
        if len(held.given):
            driver.copy_in(held.address + GUARD, held.given)

    def _read(self, name: str, held: _Held) -> NDArray[np.uint8]:
        """The tensor's bytes afterwards. Raises `Violation` for a guard zone that was written."""
        self._require_guards(name, held)
        return self._copied(held.address + GUARD, np.empty_like(held.given))

    def _require_guards(self, name: str, held: _Held) -> None:
        block = np.empty(GUARD, np.uint8)
        before = np.flatnonzero(self._copied(held.address, block) != _ONES)
        if len(before):
            raise Violation(f"{len(before)} bytes before {name} were written, the last {GUARD - before[-1]} before it")
        behind = np.flatnonzero(self._copied(held.address + GUARD + len(held.given), block) != _ONES)
        if len(behind):
            raise Violation(f"{len(behind)} bytes behind {name} were written, the first {behind[0]} past its end")

    def _require_untouched(self, inputs: Mapping[str, _Held]) -> None:
        """What was not written in any run is as it was before the first."""
        piece, changed = np.empty(PIECE, np.uint8), []
        for name, h in inputs.items():
            self._require_guards(name, h)
            for at in range(0, len(h.given), PIECE):
                given = h.given[at : at + PIECE]
                if not same_bits(self._copied(h.address + GUARD + at, piece[: len(given)]), given):
                    changed.append(name)
                    break
        if changed:
            raise Violation(f"{', '.join(changed)} changed, which is no output")

    def _copied(self, address: int, host: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if len(host):
            self.device.driver.copy_out(host, address)
            self.device.driver.sync()
        return host


def same_bits(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """As `numpy.array_equal`, of bytes in a row, eight at a time."""
    whole = len(a) // 8 * 8
    if len(a) != len(b) or not np.array_equal(a[whole:], b[whole:]):
        return False
    return np.array_equal(a[:whole].view(np.uint64), b[:whole].view(np.uint64))


def _bytes(tensor: torch.Tensor | None) -> NDArray[np.uint8] | None:
    """The tensor's own memory."""
    if tensor is None:
        return None
    found: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return found

"""How fast a device is at the moment, by two kernels that are always the same: one moves data, one multiplies."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dsv2_compile.autotune.measure.jobs import Step, compiled_step
from dsv2_compile.autotune.measure.stats import median
from dsv2_compile.backends.cuda.compile import compile_each, request
from dsv2_compile.backends.cuda.pool import Runner
from dsv2_compile.devices.device import Argument, Device, Work
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.kernels.gpu.kernel import KERNELS, Dims
from dsv2_compile.targets import Target

SECONDS, REPEATS = 0.5, 10
COPY, PRODUCT = "copy", "product"


@dataclass(frozen=True)
class Reference:
    """A launch with ``rows`` rows."""

    step: Step
    rows: int


def _product(size: int) -> Dims:
    return {"N": size, "K": size, "X_STRIDE": size, "OUT_STRIDE": size, "INDEXED": False, "ROWS_HINT": size}


ON_GPU: Mapping[str, tuple[str, Dims, int]] = {
    COPY: ("embedding", {"N": 1 << 14}, 1 << 12),
    PRODUCT: ("linear", _product(4096), 4096),
}
"""Kernel, dims and rows: 128 MiB read and written, 137 GFLOP."""
ON_HOST: Mapping[str, tuple[str, Dims, int]] = {COPY: ("embedding", {"N": 64}, 4), PRODUCT: ("linear", _product(32), 4)}


def on_host(target: Target) -> dict[str, Reference]:
    """Not compiled, as the interpreter takes them."""
    found = {}
    for name, (kernel, dims, rows) in ON_HOST.items():
        config = {**KERNELS[kernel].default(dims, target), **_unsplit(kernel)}
        step = Step(kernel, tuple(sorted(dims.items())), tuple(sorted(config.items())))
        found[name] = Reference(step, rows)
    return found


def compiled(target: Target, runner: Runner) -> dict[str, Reference]:
    """IncompatibleError if they cannot be."""
    asked = {}
    for name, (kernel, dims, _) in ON_GPU.items():
        config = {**KERNELS[kernel].default(dims, target), **_unsplit(kernel)}
        asked[name] = request(KERNELS[kernel], dims, config, "bf16")
    with closing(compile_each(list(asked.values()), target, runner)) as results:
        made = {b.request: b for b in results}
    for name, r in asked.items():
        if not made[r].ok or made[r].cubin is None:
            raise IncompatibleError(
                f"The kernel that tells how fast a GPU is cannot be compiled ({name}): {made[r].reason}.",
                "Report this as a bug.",
            )
    return {name: Reference(compiled_step(r, made[r].cubin), ON_GPU[name][2]) for name, r in asked.items()}


def _unsplit(kernel: str) -> dict[str, int]:
    return {"SPLIT_K": 1} if kernel == "linear" else {}


class Speed:
    """``references``: by name, on ``device``, which keeps their tensors."""

    def __init__(self, device: Device, references: Mapping[str, Reference]) -> None:
        self._device, self._references = device, references
        self._works = {name: self._prepared(r) for name, r in references.items()}
        self._fastest = dict.fromkeys(references, float("inf"))

    def _prepared(self, reference: Reference) -> Work:
        step, rows = reference.step, reference.rows
        width = int(step.dims.get("K", step.dims["N"]))
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(rows, width, generator=generator).bfloat16()
        weights = torch.randn(int(step.dims["N"]), width, generator=generator) if "K" in step.dims else torch.zeros(0)
        tensors = {"tokens": torch.arange(rows, dtype=torch.int32), "table": values, "x": values, "out": values}
        tensors |= {"w": weights.bfloat16()}
        places: dict[str, Argument] = {
            n: put(self._device, as_bytes(t)) for n, t in tensors.items() if n in step.kernel.args
        }
        work = self._device.call(step.kernel, step.dims, step.config, "bf16", {"rows": rows}, places, step.cubin)
        work()
        self._device.driver.sync()
        return work

    def times(self) -> dict[str, float]:
        """Microseconds of each."""
        found = {n: 1e3 * median(self._device.times([w], SECONDS, REPEATS)) for n, w in self._works.items()}
        self._fastest = {n: min(t, found[n]) for n, t in self._fastest.items()}
        return found

    def rates(self) -> tuple[float, float]:
        """Bytes/s of the copy and FLOP/s of the product, at their fastest so far."""
        costs = {n: r.step.kernel.cost(r.step.dims, {"rows": r.rows}) for n, r in self._references.items()}
        moved, computed = float(costs[COPY].bytes), float(costs[PRODUCT].flops)
        return moved / (self._fastest[COPY] * 1e-6), computed / (self._fastest[PRODUCT] * 1e-6)


def as_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return found


def put(device: Device, value: NDArray[np.uint8]) -> int:
    """The address of a copy in the memory of ``device``."""
    address = device.driver.alloc(max(len(value), 1))
    if len(value):
        device.driver.copy_in(address, value)
        device.driver.sync()
    return address

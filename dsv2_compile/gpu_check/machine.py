"""What the check runs on: the GPU, the software, and the two rates that everything is measured against."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import dsv2_compile.kernels.gpu.source as sources
from dsv2_compile.devices.device import Device, open_device
from dsv2_compile.devices.identify import profile_of
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.gpu_check.options import OK, Options, Row
from dsv2_compile.gpu_check.timing import spread
from dsv2_compile.runtime.native.cuda_core import open_driver
from dsv2_compile.targets import GPUS, target

LIBRARIES = ("torch", "triton", "numpy", "cuda-core", "cuda-bindings", "transformers")
COPY_BYTES, MATMUL = 4 << 30, 8192
TOY_BYTES, TOY_MATMUL = 1 << 20, 64
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu", "driver_version")
SECONDS, MOST = 0.5, 60


def items(options: Options) -> list[Row]:
    return [{"id": "machine"}]


def start(options: Options) -> Options:
    return options


def sound(state: Options) -> None: ...


def run(options: Options, item: Row) -> Row:
    found: Row = {"status": OK, "target": options.target}
    if not options.host:
        driver = open_driver(0)
        found |= {"gpu": driver.name, "capability": driver.capability, "cuda": driver.version}
        found |= {"memory_bytes": driver.memory()[1], "target": target_of(driver.name, driver.capability)}
        driver.close()
        if not torch.cuda.is_available():
            raise IncompatibleError("torch finds no GPU.", "Install a build of torch for CUDA.")
    device = open_device(target(str(found["target"])), options.host)
    return {**found, **rates(device, options.host), "clocks": {} if options.host else clocks()}


def target_of(name: str, capability: str) -> str:
    """The profile of a GPU by what its driver calls it, or any of its architecture."""
    same = [t.name for t in GPUS.values() if t.capability == capability]
    if not same:
        known = ", ".join(sorted({t.capability for t in GPUS.values()}))
        raise IncompatibleError(f"{name} is a {capability}, which has no profile.", f"Use a GPU of {known}.")
    return profile_of(name, capability) or same[0]


def rates(device: Device, toy: bool) -> dict[str, Any]:
    """GB/s of a copy within the GPU's memory, bytes read and written, by the driver's copy or a kernel, whichever is
    faster, and TFLOP/s of a bf16 product, both by torch on random data; medians."""
    nbytes, size = (TOY_BYTES, TOY_MATMUL) if toy else (COPY_BYTES, MATMUL)
    a = device.normal(nbytes // 2)
    b = device.empty(nbytes // 2)
    ways: dict[str, Callable[[], Any]] = {"copy": lambda: b.copy_(a), "kernel": lambda: torch.neg(a, out=b)}
    copies = {way: spread(device.torch_times([work], SECONDS, MOST)) for way, work in ways.items()}
    copy = min(copies.values(), key=lambda ms: ms["median"])
    left, right = device.normal(size, size), device.normal(size, size)
    product = spread(device.torch_times([lambda: left @ right], SECONDS, MOST))
    return {
        "copy_gbps": round(2 * nbytes / copy["median"] / 1e6, 3),
        "matmul_tflops": round(2 * size**3 / product["median"] / 1e9, 6),
        "copy_ms": copies,
        "matmul_ms": product,
        "copy_bytes": nbytes,
        "matmul_size": size,
    }


def clocks() -> dict[str, str]:
    """As nvidia-smi has them at this moment; empty without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader", "--id=0"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(CLOCKS, (v.strip() for v in out.strip().split(",")), strict=False))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def source_digest() -> str:
    """Of the kernels' sources: tells which ones were checked, whatever the tree is called."""
    h = hashlib.sha256()
    for path in sorted(Path(next(iter(sources.__path__))).glob("*.py")):
        h.update(path.name.encode() + b"\0" + path.read_bytes())
    return h.hexdigest()

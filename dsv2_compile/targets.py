"""Machines a program is compiled for. Never asked of a driver.

Sources, one a group of figures:

- limits of an `Architecture`: CUDA C++ Programming Guide, technical specifications per compute capability, and the
  tuning guides of the architectures. Unsure: blocks per SM of sm_120, where the former says 24 and the Blackwell
  tuning guide 32; the smaller is taken.
- bandwidth, rates, memory, link: the vendor's data sheets (SXM parts where there are several; rates are dense, with
  fp32 accumulation; memory in bytes of 10**9, a little less than what a driver reports). Unsure: h20 and a800, whose
  sheets are known from resellers; fp32 and tf32 of b200. RTX parts: the architecture white papers.
- SMs and L2: what device queries print. Unsure: L2 of l40s and h20.
- ``cpu``: a two-core x86-64 host, AVX2, fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dsv2_compile.errors import UsageError

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Architecture:
    """Limits of one compute capability. Shared memory in bytes: ``shared_per_block`` with the opt-in above 48 KiB,
    ``shared_reserved`` is what the system takes of every block. Registers are of 32 bits and given to a warp in
    lots of ``register_unit``. ``tensor_memory``: columns per SM. ``dtypes``: those with arithmetic of their own."""

    capability: str
    shared_per_block: int
    shared_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    dtypes: tuple[str, ...]
    tensor_memory: int = 0
    threads_per_block: int = 1024
    registers_per_sm: int = 65536
    registers_per_thread: int = 255
    register_unit: int = 256
    shared_reserved: int = 1 * _KIB
    shared_unit: int = 128


_AMPERE = ("fp32", "tf32", "bf16", "fp16", "int8")
_ADA = (*_AMPERE, "fp8")

ARCHITECTURES = {
    a.capability: a
    for a in (
        Architecture("sm_80", 163 * _KIB, 164 * _KIB, 2048, 32, _AMPERE),
        Architecture("sm_89", 99 * _KIB, 100 * _KIB, 1536, 24, _ADA),
        Architecture("sm_90", 227 * _KIB, 228 * _KIB, 2048, 32, _ADA),
        Architecture("sm_100", 227 * _KIB, 228 * _KIB, 2048, 32, _ADA, tensor_memory=512),
        Architecture("sm_120", 99 * _KIB, 100 * _KIB, 1536, 24, _ADA),
    )
}


@dataclass(frozen=True)
class Target:
    """``bandwidth`` in bytes/s; ``flops``: dense matrix rate in FLOP/s, of bf16 on GPUs; ``peak``: by dtype.

    ``l2`` and ``memory`` in bytes. ``link``: bytes/s one way to a peer, over ``link_kind``. Zero: no GPU.
    """

    name: str
    capability: str
    bandwidth: float
    flops: float
    sms: int = 0
    l2: int = 0
    memory: int = 0
    link: float = 0.0
    link_kind: str = ""
    peak: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def is_gpu(self) -> bool:
        return self.capability in ARCHITECTURES

    @property
    def architecture(self) -> Architecture:
        """Raises UsageError if the target is no GPU."""
        if not self.is_gpu:
            raise UsageError(f"target {self.name!r} is no GPU", f"choose one of {', '.join(GPUS)}")
        return ARCHITECTURES[self.capability]

    def seconds(self, nbytes: float, flops: float) -> float:
        """Roofline bound of one operator."""
        return max(nbytes / self.bandwidth, flops / self.flops)


def _gpu(
    name: str,
    capability: str,
    sms: int,
    l2_mib: float,
    memory_gb: int,
    tb_s: float,
    link: tuple[str, float],
    **tflops: float,
) -> Target:
    """``link``: kind and GB/s one way. ``tflops``: rate by dtype; fp16 goes as bf16."""
    peak = {dtype: rate * 1e12 for dtype, rate in tflops.items()}
    peak["fp16"] = peak["bf16"]
    l2, memory = int(l2_mib * _MIB), memory_gb * 10**9
    return Target(name, capability, tb_s * 1e12, peak["bf16"], sms, l2, memory, link[1] * 1e9, link[0], peak)


_HOPPER = {"fp32": 67, "tf32": 494, "bf16": 989, "fp8": 1979, "int8": 1979}
_A100 = {"fp32": 19.5, "tf32": 156, "bf16": 312, "int8": 624}
_B200 = {"fp32": 75, "tf32": 1100, "bf16": 2250, "fp8": 4500, "int8": 4500}

TARGETS = {
    t.name: t
    for t in (
        Target("cpu", "x86-64", 20e9, 100e9),
        _gpu("h800", "sm_90", 132, 50, 80, 3.35, ("NVLink", 200), **_HOPPER),
        _gpu("h100", "sm_90", 132, 50, 80, 3.35, ("NVLink", 450), **_HOPPER),
        _gpu("h200", "sm_90", 132, 60, 141, 4.8, ("NVLink", 450), **_HOPPER),
        _gpu("h20", "sm_90", 78, 60, 96, 4.0, ("NVLink", 450), fp32=44, tf32=74, bf16=148, fp8=296, int8=296),
        _gpu("a100", "sm_80", 108, 40, 80, 2.04, ("NVLink", 300), **_A100),
        _gpu("a800", "sm_80", 108, 40, 80, 2.04, ("NVLink", 200), **_A100),
        _gpu("l40s", "sm_89", 142, 96, 48, 0.864, ("PCIe", 32), fp32=91.6, tf32=183, bf16=362, fp8=733, int8=733),
        _gpu("rtx4090", "sm_89", 128, 72, 24, 1.008, ("PCIe", 32), fp32=82.6, tf32=82.6, bf16=165, fp8=330, int8=661),
        _gpu("b200", "sm_100", 148, 126.5, 180, 8.0, ("NVLink", 900), **_B200),
        _gpu("rtx5090", "sm_120", 170, 96, 32, 1.792, ("PCIe", 63), fp32=105, tf32=105, bf16=209, fp8=419, int8=838),
    )
}
GPUS = {name: t for name, t in TARGETS.items() if t.is_gpu}


def target(name: str) -> Target:
    """Raises UsageError for a name that is not in `TARGETS`."""
    if name not in TARGETS:
        from difflib import get_close_matches

        meant = get_close_matches(name.lower(), TARGETS, 1)
        known = f"choose one of {', '.join(TARGETS)}"
        raise UsageError(f"unknown target {name!r}", f"did you mean {meant[0]}? {known}" if meant else known)
    return TARGETS[name]

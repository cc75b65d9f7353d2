"""Machines a program is compiled for. Never asked of a driver.

Sources, one a group of figures:

- limits of an `Architecture`: CUDA C++ Programming Guide, technical specifications per compute capability, and the
  tuning guides of the architectures. Unsure: blocks per SM of sm_120, where the former says 24 and the Blackwell
  tuning guide 32; the smaller is taken.
- bandwidth, rates, memory, link: the vendor's data sheets (SXM parts where there are several; rates are dense, with
  fp32 accumulation; memory in bytes of 10**9, a little less than what a driver reports). Unsure: h20 and a800, whose
  sheets are known from resellers; fp32 and tf32 of b200. RTX parts: the architecture white papers.
- SMs and L2: what device queries print. Unsure: L2 of l40s and h20.
- clock: the vendor's boost clock; of Hopper and of b200 that at which SMs times FLOP a clock give the sheet's rate.
  Unsure: h20, taken for the highest of its architecture.
- latencies: published microbenchmarks of idle GPUs, in clocks: of sm_80, sm_89 and the L2 of sm_90 arXiv:2402.13499,
  of DRAM of sm_90 and of sm_120 arXiv:2507.10789, which times the former at 659 where the other has 479. Unsure:
  sm_100, a guess between its neighbours.
- ``warp_matrix``: of sm_80 and sm_89 the white papers. sm_90: 62.9 % of the rate of warp group instructions on average,
  arXiv:2501.12084. Unsure: sm_100, taken for sm_90's; sm_120, for sm_89's.
- ``l2_per_clock``: sm_90 has to have 43 at least, as fp8 products of Triton with tiles of 128 x 256 x 128 reach 1347
  TFLOP/s on an h100 (triton-lang/triton issue 5461), and a port takes 64; 48 is a guess. sm_80: the vendor's 5120 bytes
  a clock of all slices, less a fifth. Unsure: sm_89 and sm_120, after one published figure of 5 TB/s of an rtx4090;
  sm_100, taken for sm_90's.
- ``cpu``: a two-core x86-64 host, AVX2, fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dsv2_compile.errors import UsageError

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Architecture:
    """Limits of one compute capability. Shared memory in bytes: ``shared_per_block`` with the opt-in above 48 KiB,
    ``shared_reserved`` is what the system takes of every block. Registers are of 32 bits and given to a warp in
    lots of ``register_unit``. ``matrix``: the family of the strongest matrix instructions; ``tensor_memory``: columns
    per SM. ``dtypes``: those with arithmetic of their own.

    Rates, for estimates: ``l2_latency``, ``dram_latency`` in clocks; ``l2_per_clock``: bytes that L2 gives an SM in a
    clock when all ask; ``warp_matrix``: dense FLOP per clock and SM of matrix instructions of one warp on bf16;
    ``fma_lanes``: fp32 units of one of an SM's four schedulers."""

    capability: str
    matrix: Literal["mma", "wgmma", "tcgen05"]
    shared_per_block: int
    shared_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    dtypes: tuple[str, ...]
    l2_latency: int = 0
    dram_latency: int = 0
    l2_per_clock: int = 0
    warp_matrix: int = 0
    fma_lanes: int = 32
    tensor_memory: int = 0
    threads_per_block: int = 1024
    registers_per_sm: int = 65536
    registers_per_thread: int = 255
    register_unit: int = 256
    shared_reserved: int = 1 * _KIB
    shared_unit: int = 128

    @property
    def number(self) -> int:
        """90 of sm_90."""
        return int(self.capability.removeprefix("sm_"))

    @property
    def shared_operands(self) -> bool:
        """Whether matrix instructions take tiles where they are in shared memory, not through registers."""
        return self.matrix != "mma"

    @property
    def large_shared(self) -> bool:
        """Whether a block may have the shared memory of a data-centre GPU, 160 KiB at least."""
        return self.shared_per_block >= 160 * _KIB


_AMPERE = ("fp32", "tf32", "bf16", "fp16", "int8")
_ADA = (*_AMPERE, "fp8")

ARCHITECTURES = {
    a.capability: a
    for a in (
        Architecture("sm_80", "mma", 163 * _KIB, 164 * _KIB, 2048, 32, _AMPERE, 262, 466, 38, 2048, fma_lanes=16),
        Architecture("sm_89", "mma", 99 * _KIB, 100 * _KIB, 1536, 24, _ADA, 273, 542, 16, 1024),
        Architecture("sm_90", "wgmma", 227 * _KIB, 228 * _KIB, 2048, 32, _ADA, 263, 659, 48, 2576),
        Architecture(
            "sm_100", "tcgen05", 227 * _KIB, 228 * _KIB, 2048, 32, _ADA, 310, 750, 48, 2576, tensor_memory=512
        ),
        Architecture("sm_120", "mma", 99 * _KIB, 100 * _KIB, 1536, 24, _ADA, 358, 877, 16, 1024),
    )
}


@dataclass(frozen=True)
class Target:
    """``bandwidth`` in bytes/s; ``flops``: dense matrix rate in FLOP/s, of bf16 on GPUs; ``peak``: by dtype.
    ``clock`` in Hz.

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
    clock: float = 0.0

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
    ghz: float,
    link: tuple[str, float],
    **tflops: float,
) -> Target:
    """``link``: kind and GB/s one way. ``tflops``: rate by dtype; fp16 goes as bf16."""
    peak = {dtype: rate * 1e12 for dtype, rate in tflops.items()}
    peak["fp16"] = peak["bf16"]
    l2, memory = int(l2_mib * _MIB), memory_gb * 10**9
    return Target(name, capability, tb_s * 1e12, peak["bf16"], sms, l2, memory, link[1] * 1e9, link[0], peak, ghz * 1e9)


_HOPPER = {"fp32": 67, "tf32": 494, "bf16": 989, "fp8": 1979, "int8": 1979}
_A100 = {"fp32": 19.5, "tf32": 156, "bf16": 312, "int8": 624}
_RTX4090 = {"fp32": 82.6, "tf32": 82.6, "bf16": 165, "fp8": 330, "int8": 661}
_RTX5090 = {"fp32": 105, "tf32": 105, "bf16": 209, "fp8": 419, "int8": 838}
_B200 = {"fp32": 75, "tf32": 1100, "bf16": 2250, "fp8": 4500, "int8": 4500}

TARGETS = {
    t.name: t
    for t in (
        Target("cpu", "x86-64", 20e9, 100e9),
        _gpu("h800", "sm_90", 132, 50, 80, 3.35, 1.83, ("NVLink", 200), **_HOPPER),
        _gpu("h100", "sm_90", 132, 50, 80, 3.35, 1.83, ("NVLink", 450), **_HOPPER),
        _gpu("h200", "sm_90", 132, 60, 141, 4.8, 1.83, ("NVLink", 450), **_HOPPER),
        _gpu("h20", "sm_90", 78, 60, 96, 4.0, 1.98, ("NVLink", 450), fp32=44, tf32=74, bf16=148, fp8=296, int8=296),
        _gpu("a100", "sm_80", 108, 40, 80, 2.04, 1.41, ("NVLink", 300), **_A100),
        _gpu("a800", "sm_80", 108, 40, 80, 2.04, 1.41, ("NVLink", 200), **_A100),
        _gpu("l40s", "sm_89", 142, 96, 48, 0.864, 2.52, ("PCIe", 32), fp32=91.6, tf32=183, bf16=362, fp8=733, int8=733),
        _gpu("rtx4090", "sm_89", 128, 72, 24, 1.008, 2.52, ("PCIe", 32), **_RTX4090),
        _gpu("b200", "sm_100", 148, 126.5, 180, 8.0, 1.86, ("NVLink", 900), **_B200),
        _gpu("rtx5090", "sm_120", 170, 96, 32, 1.792, 2.41, ("PCIe", 63), **_RTX5090),
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

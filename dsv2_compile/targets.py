"""Machines a program is compiled for: the figures the cost model reads. Never asked of a driver.

Bandwidth in bytes/s and dense matrix rate in FLOP/s. GPUs: the vendors' data sheets (SXM parts where
there are several); ``cpu``: a two-core x86-64 host, AVX2, fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv2_compile.errors import UsageError


@dataclass(frozen=True)
class Target:
    name: str
    capability: str
    bandwidth: float
    flops: float

    def seconds(self, nbytes: float, flops: float) -> float:
        """Roofline bound of one operator."""
        return max(nbytes / self.bandwidth, flops / self.flops)


TARGETS = {
    t.name: t
    for t in (
        Target("cpu", "x86-64", 20e9, 100e9),
        Target("h800", "sm_90", 3.35e12, 989e12),
        Target("h100", "sm_90", 3.35e12, 989e12),
        Target("h200", "sm_90", 4.8e12, 989e12),
        Target("h20", "sm_90", 4.0e12, 148e12),
        Target("a100", "sm_80", 2.04e12, 312e12),
        Target("a800", "sm_80", 2.04e12, 312e12),
        Target("l40s", "sm_89", 0.864e12, 362e12),
        Target("rtx4090", "sm_89", 1.008e12, 165e12),
        Target("b200", "sm_100", 8.0e12, 2250e12),
        Target("rtx5090", "sm_120", 1.792e12, 209e12),
    )
}


def target(name: str) -> Target:
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}", f"choose one of {', '.join(TARGETS)}")
    return TARGETS[name]

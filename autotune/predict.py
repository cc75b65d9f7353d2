"""How long a compiled kernel should take on a target that is not there: a model of waves of blocks, not a measurement."""

from __future__ import annotations

from dsv2_compile.backends.cuda.compile import Compiled
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config
from dsv2_compile.plan.expr import evaluate
from dsv2_compile.targets import Target

VERSION = 1
"""Of the model. Records of another version are compared with nothing."""
LAUNCH = 2.0
"""Microseconds between two launches of a CUDA graph."""


def bound(call: Call, target: Target) -> float:
    """Least microseconds of a call by the roofline: bytes over bandwidth, FLOP over the matrix rate."""
    cost = KERNELS[call.kernel].cost(dict(call.dims), dict(call.sizes))
    return target.seconds(float(cost.bytes), float(cost.flops)) * 1e6


def predict(call: Call, config: Config, built: Compiled, target: Target) -> float:
    """Microseconds."""
    kernel, sizes = KERNELS[call.kernel], dict(call.sizes)
    assert built.report is not None
    blocks = 1
    for size in kernel.grid(dict(call.dims), config, sizes):
        blocks *= evaluate(size, {})
    at_once = target.sms * max(built.report.blocks_per_sm, 1)
    waves = -(-blocks // at_once)
    full = blocks / at_once
    return LAUNCH + bound(call, target) * waves / max(full, 1e-9)

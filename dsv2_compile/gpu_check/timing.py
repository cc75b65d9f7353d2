"""What a row says of a time: its spread, and how far it is from what the GPU was measured to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from dsv2_compile.bench.stats import Spread
from dsv2_compile.devices.device import Device, Work
from dsv2_compile.gpu_check.options import OK, WRONG, Row
from dsv2_compile.gpu_check.scale import Scale, Step
from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu.check import UNIT

Torch = Callable[[], tuple[str, Sequence[Work]]]
"""What torch does for the same result, by name, and the works to time."""


def spread(times: Sequence[float]) -> dict[str, Any]:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(Spread.of(times)).items()}


def against(machine: dict[str, Any], ms: float, moved: float, flops: float) -> Row:
    """``ms`` against the copy bandwidth and the matrix rate of this run. ``share``: 1 is as fast as the bound."""
    memory, compute = moved / machine["copy_gbps"] / 1e6, flops / machine["matmul_tflops"] / 1e9
    bound = max(memory, compute)
    return {
        "bytes": int(moved),
        "flops": int(flops),
        "gbps": round(moved / ms / 1e6, 1),
        "tflops": round(flops / ms / 1e9, 2),
        "bound_ms": round(bound, 6),
        "bound": "memory" if memory >= compute else "compute",
        "share": round(bound / ms, 4),
    }


def row(
    device: Device,
    machine: dict[str, Any],
    s: Scale,
    works: Sequence[Work],
    cost: Cost,
    steps: Sequence[Step],
    error: tuple[float, int],
    baseline: Torch,
) -> Row:
    """``error``: relative L2 of what was computed, and how many roundings it has. A failing ``baseline`` is told."""
    found, limit = error[0], UNIT["bf16"] * error[1] ** 0.5
    ours = spread(device.times(works, s.seconds, s.most))
    out: Row = {
        "status": OK if found <= limit else WRONG,
        "l2": found,
        "limit": limit,
        "ms": ours,
        "hot_ms": spread(device.times(works[:1], s.seconds / 3, s.most))["median"],
        **against(machine, ours["median"], float(cost.bytes), float(cost.flops)),
        "rotated": len(works),
        "configs": {step.kernel.name: dict(step.config) for step in steps},
    }
    if out["status"] == WRONG:
        out["reason"] = f"relative L2 error {found:.2e}, limit {limit:.2e}"
    try:
        name, theirs = baseline()
        out["torch"] = {"what": name, "ms": (ms := spread(device.torch_times(theirs, s.seconds, s.most)))}
        out["torch_over_ours"] = round(ms["median"] / ours["median"], 3)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as e:  # out of memory among them
        out["torch"] = {"failed": " ".join(str(e).split())[:200]}
    device.clear()
    return out


def rel_l2(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """NaN never passes a limit."""
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-30))

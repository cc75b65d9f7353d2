"""One row a compiled kernel, for tables and figures."""

from __future__ import annotations

from typing import Any

from dsv2_compile.backends.cuda.compile import Compiled
from dsv2_compile.targets import Target


def row(compiled: Compiled, target: Target) -> dict[str, Any]:
    """Plain data. ``registers`` and ``stack_bytes`` per thread, ``shared_bytes`` per block; None if not compiled."""
    request, cubin, usage, report = compiled.request, compiled.cubin, compiled.usage, compiled.report
    return {
        "kernel": request.kernel,
        "dims": dict(request.dims),
        "config": dict(request.config),
        "dtype": request.dtype,
        "target": target.name,
        "reason": compiled.reason,
        "registers": usage and usage.registers,
        "stack_bytes": usage and usage.stack,
        "spill_stores": usage and usage.spill_stores,
        "spill_loads": usage and usage.spill_loads,
        "shared_bytes": cubin and cubin.shared,
        "tensor_memory_columns": cubin and cubin.tensor_memory,
        "threads": cubin and cubin.warps * 32,
        "matrix": report and report.matrix,
        "blocks_per_sm": report and report.blocks_per_sm,
        "cubin_bytes": cubin and len(cubin.image),
        "processor_seconds": round(compiled.seconds, 3),
    }

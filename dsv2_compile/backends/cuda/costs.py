"""What every launch of a native program moves and computes, and the least time that takes on the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dsv2_compile.backends.cuda.compile import Compiled
from dsv2_compile.backends.cuda.draft import Draft, Request
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.plan.expr import evaluate
from dsv2_compile.targets import Target

FILE = "launches.json"


@dataclass(frozen=True)
class LaunchCost:
    """``bytes`` and ``flops`` at least, for a model of two-byte values; ``bound``: "memory" or "compute", whichever
    takes ``seconds`` on the target."""

    what: str
    kernel: str
    grid: tuple[int, int, int]
    bytes: int
    flops: int
    seconds: float
    bound: str


def launch_costs(draft: Draft, symbols: Mapping[str, int]) -> list[LaunchCost]:
    out = []
    for launch in draft.launches:
        kernel = KERNELS[launch.request.kernel]
        own = {k: evaluate(v, symbols) for k, v in launch.sizes.items()}
        cost = kernel.cost(dict(launch.request.dims), {**symbols, **own})
        nbytes, flops = int(cost.bytes), int(cost.flops)
        seconds = draft.target.seconds(nbytes, flops)
        bound = "memory" if nbytes / draft.target.bandwidth >= seconds else "compute"
        x, y, z = (evaluate(g, symbols) for g in launch.grid)
        out.append(LaunchCost(launch.what, launch.request.kernel, (x, y, z), nbytes, flops, seconds, bound))
    return out


def report(
    drafts: Mapping[tuple[str, str], Draft], built: Mapping[Request, Compiled], target: Target
) -> dict[str, Any]:
    """For `inspect`: by program its sizes and launches, and of every kernel what it takes of the GPU."""
    programs = {}
    for (name, _), draft in drafts.items():
        at = dict(draft.workload)
        rows = [asdict(c) | {"grid": list(c.grid)} for c in launch_costs(draft, {**at, "slots": 64})]
        programs[name] = {"sizes": at, "launches": rows}
    return {"target": target.name, "programs": programs, "kernels": [_kernel(c) for c in built.values()]}


def _kernel(compiled: Compiled) -> dict[str, Any]:
    """Registers a thread, bytes of shared memory a block, bytes of stack a thread (spills), matrix instruction."""
    r, usage, checked = compiled.request, compiled.usage, compiled.report
    assert compiled.cubin is not None and usage is not None and checked is not None
    return {
        "kernel": r.kernel,
        "dims": dict(r.dims),
        "config": dict(r.config),
        "registers": usage.registers,
        "shared": compiled.cubin.shared,
        "stack": usage.stack,
        "matrix": checked.matrix,
        "blocks_per_sm": checked.blocks_per_sm,
        "cubin_bytes": len(compiled.cubin.image),
    }

"""What the launches of a plan must move and compute: the costs of `backends.cuda.costs`, from the plan alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.plan.expr import evaluate
from dsv2_compile.plan.plan import KernelEntry, Launch, Plan, PlanProgram, Pointer


@dataclass(frozen=True)
class LaunchCost:
    """``bytes`` and ``flops`` at least."""

    what: str
    kernel: str
    bytes: int
    flops: int


def launch_costs(plan: Plan, program: PlanProgram, symbols: Mapping[str, int]) -> Iterator[LaunchCost]:
    """Of every launch that has a block, at ``symbols``, in order."""
    for launch in program.launches:
        x, y, z = (evaluate(g, symbols) for g in launch.grid)
        if not x * y * z:
            continue
        entry = plan.kernels[launch.kernel]
        kernel = KERNELS[entry.kernel]
        numbers = {
            n: evaluate(a, symbols)
            for n, a in zip(kernel.args, launch.args, strict=True)
            if a is not None and not isinstance(a, Pointer)
        }
        cost = kernel.cost(_dims(program, entry, launch), {**symbols, **numbers})
        yield LaunchCost(launch.what, entry.kernel, int(cost.bytes), int(cost.flops))


def _dims(program: PlanProgram, entry: KernelEntry, launch: Launch) -> dict[str, int | float | bool]:
    """Dims are constants of the source, but for the number of parts where only the table of parts tells it."""
    dims = dict(entry.constants)
    for name, arg in zip(KERNELS[entry.kernel].args, launch.args, strict=True):
        if name == "parts" and isinstance(arg, Pointer) and "PARTS" not in dims:
            table = program.buffers[arg.buffer].shape
            if len(table) == 2 and isinstance(table[0], int):
                dims["PARTS"] = table[0] - 1
    return dims

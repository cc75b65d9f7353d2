"""From a target to its judge, if the GPU is really here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.autotune.measure.jobs import Step
from dsv2_compile.autotune.measure.judge import MeasuredJudge
from dsv2_compile.autotune.measure.pool import MeasuringPool
from dsv2_compile.autotune.measure.worker import Setup
from dsv2_compile.backends.cuda.compile import compile_each, request
from dsv2_compile.backends.cuda.pool import Runner
from dsv2_compile.devices.identify import identify
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.targets import Target

COPIED_ROW = 16384
"""Elements of a row of the reference copy."""


@contextmanager
def measured_judge(target: Target, runner: Runner) -> Iterator[MeasuredJudge]:
    """``runner`` compiles. IncompatibleError, with the reason, if the GPU of ``target`` is not here."""
    found = identify()
    if isinstance(found, str) or found.target != target.name:
        cause = found if isinstance(found, str) else f"The GPU here is {found.name}, not {target.name}."
        raise IncompatibleError(cause, "Tune without it: times are predicted then.")
    with MeasuringPool(Setup(target.name, reference_copy(target, runner))) as pool:
        yield MeasuredJudge(target, f"{found.name}, CUDA {found.cuda}", runner, pool)


def reference_copy(target: Target, runner: Runner) -> Step:
    """Compiled. IncompatibleError if it cannot be."""
    kernel, dims = KERNELS["embedding"], {"N": COPIED_ROW}
    asked = request(kernel, dims, kernel.default(dims, target), "bf16")
    with closing(compile_each([asked], target, runner)) as results:
        (built,) = results
    if built.cubin is None or not built.ok:
        raise IncompatibleError(f"A kernel that copies cannot be compiled: {built.reason}.", "Report this as a bug.")
    return Step(asked.kernel, asked.dims, asked.config, built.cubin)

"""From a target to its judge, if the GPU is really here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.autotune.measure import speed
from dsv2_compile.autotune.measure.judge import MeasuredJudge
from dsv2_compile.autotune.measure.pool import MeasuringPool
from dsv2_compile.autotune.measure.worker import Setup
from dsv2_compile.backends.cuda.pool import Runner
from dsv2_compile.devices.identify import identify
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.targets import Target


@contextmanager
def measured_judge(target: Target, runner: Runner) -> Iterator[MeasuredJudge]:
    """``runner`` compiles. IncompatibleError, with the reason, if the GPU of ``target`` is not here."""
    found = identify()
    if isinstance(found, str) or found.target != target.name:
        cause = found if isinstance(found, str) else f"The GPU here is {found.name}, not {target.name}."
        raise IncompatibleError(cause, "Tune without it: times are predicted then.")
    with MeasuringPool(Setup(target.name, speed.compiled(target, runner))) as pool:
        yield MeasuredJudge(target, f"{found.name}, CUDA {found.cuda}", runner, pool)

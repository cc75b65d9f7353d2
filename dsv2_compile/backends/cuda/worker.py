"""What a compiling process does: jobs in, cubins out. It imports Triton and the kernels' sources, not torch."""

from __future__ import annotations

import os
from collections.abc import Callable

import triton  # noqa: F401  when the process starts, not in the time of its first job

from dsv2_compile.backends.cuda.build_cache import Built
from dsv2_compile.backends.cuda.disassembly import examine
from dsv2_compile.kernels.gpu.aot import Job, build


def start(setup: None) -> Callable[[Job], tuple[Built, bool]]:
    """A worker of `processes`."""
    return lambda job: (answer(job), False)


def answer(job: Job) -> Built:
    """Raises what the compiler raises."""
    start = _processor_seconds()
    cubin = build(job)
    return Built(cubin, examine(cubin.image), _processor_seconds() - start)


def _processor_seconds() -> float:
    """Of this process and of the compilers it has run."""
    return sum(os.times()[:4])

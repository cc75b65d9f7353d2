"""One compiling process: jobs in, cubins out. It imports Triton and the kernels' sources, not torch."""

from __future__ import annotations

import os
import signal
import tempfile
from multiprocessing.connection import Connection

from dsv2_compile.backends.cuda.build_cache import Built
from dsv2_compile.backends.cuda.disassembly import examine
from dsv2_compile.kernels.gpu.aot import Job, build


def main(fd: int, folder: str) -> None:
    """Answer jobs from the socket ``fd`` until it closes: a `Built`, or what went wrong as text. None first: ready.

    ``folder`` takes temporary files. Standard output and error are the job's log; they are emptied before each.
    A job comes with the seconds after which SIGALRM ends it, should the parent not be there to do it.
    """
    os.set_inheritable(fd, False)
    tempfile.tempdir = folder
    with Connection(fd) as pipe:
        pipe.send(None)
        while True:
            try:
                job, seconds = pipe.recv()
            except EOFError:
                return
            os.ftruncate(2, 0)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            pipe.send(_answer(job))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(job: Job) -> Built | str:
    start = _processor_seconds()
    try:
        cubin = build(job)
        return Built(cubin, examine(cubin.image), _processor_seconds() - start)
    except Exception as e:
        return f"{type(e).__name__}: {e}"


def _processor_seconds() -> float:
    """Of this process and of the compilers it has run."""
    return sum(os.times()[:4])

"""Jobs in compiling processes that may crash, hang or fail: each costs its own job, the others go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Protocol

from dsv2_compile.backends.cuda.build_cache import Built
from dsv2_compile.backends.cuda.toolchain import environment
from dsv2_compile.kernels.gpu.aot import Job

STARTING = 60.0
"""Seconds a new process may take to import Triton."""
_LOG_BYTES = 8000
_CODE = "import sys; from dsv2_compile.backends.cuda.worker import main; main(int(sys.argv[1]), sys.argv[2])"


@dataclass(frozen=True)
class Failed:
    """``log``: the end of what the compiler printed."""

    reason: str
    log: str


class Runner(Protocol):
    """Where jobs are done: in processes here, or on other machines."""

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[int, Built | Failed], None, None]:
        """Yield (index of the job, outcome) as they come. Closing the generator stops what is left."""


class Pool:
    """A `Runner` in ``workers`` processes, None for one a CPU, that live until `close`.
    ``timeout``: seconds a job may take."""

    def __init__(self, workers: int | None = None, timeout: float = 600.0) -> None:
        self._workers, self._timeout = workers or len(os.sched_getaffinity(0)), timeout
        self._root = tempfile.TemporaryDirectory(prefix="dsv2-compile-", ignore_cleanup_errors=True)
        self._idle: list[_Worker] = []

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[int, Built | Failed], None, None]:
        waiting = deque(enumerate(jobs))
        busy: dict[Connection, _Worker] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self._workers:
                    worker = self._idle.pop() if self._idle else _Worker(Path(self._root.name), self._timeout)
                    worker.give(*waiting.popleft())
                    busy[worker.pipe] = worker
                soonest = min(w.deadline for w in busy.values())
                wait(list(busy), max(soonest - time.monotonic(), 0))
                for worker in list(busy.values()):
                    outcome = worker.outcome()
                    if outcome is not None:
                        del busy[worker.pipe]
                        if worker.alive:
                            self._idle.append(worker)
                        yield worker.index, outcome
        finally:
            for worker in busy.values():
                worker.stop()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().stop()
        self._root.cleanup()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Worker:
    """A process in a group of its own, so that its compilers die with it."""

    def __init__(self, root: Path, timeout: float) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=root))
        self._log = self._folder / "log"
        self.pipe, theirs = Pipe()
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-Pu", "-X", "faulthandler", "-c", _CODE, str(theirs.fileno()), str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**environment(), "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            )
        self._timeout, self._ready = timeout, False
        self.index, self.alive, self.deadline = -1, True, time.monotonic() + STARTING

    def give(self, index: int, job: Job) -> None:
        self.index = index
        if self._ready:
            self.deadline = time.monotonic() + self._timeout
        with suppress(OSError):  # it has ended, which `outcome` sees
            self.pipe.send((job, 2 * self._timeout))

    def outcome(self) -> Built | Failed | None:
        """None while it works. A process that did not answer is stopped."""
        late = ""
        try:
            if self.pipe.poll():
                answer = self.pipe.recv()
                if answer is not None:
                    return answer if isinstance(answer, Built) else Failed(answer, self._tail())
                self._ready, self.deadline = True, time.monotonic() + self._timeout
            if time.monotonic() < self.deadline:
                return None
            late = f"no answer in {self._timeout:g} s" if self._ready else f"no compiler after {STARTING:g} s"
        except (EOFError, OSError):
            pass  # it has ended
        status = self.stop()
        return Failed(late or f"the compiler {_ending(status)}", self._tail())

    def stop(self) -> int:
        """Kill the group. Returns the exit status, the process's own if it had ended by itself."""
        self.alive = False
        os.killpg(self._process.pid, signal.SIGKILL)
        self.pipe.close()
        return self._process.wait()

    def _tail(self) -> str:
        return self._log.read_bytes()[-_LOG_BYTES:].decode(errors="replace")


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"

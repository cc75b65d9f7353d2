"""Jobs in processes of their own that may crash, hang or fault: each costs its own job, the others go on.

A worker is a module with ``start(setup)``, which returns ``answer(job)`` -> (what is sent back, whether this process
must not be given another job). What ``answer`` raises is a `Failure` of its job and nothing else.
"""

from __future__ import annotations

import importlib
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

_LOG_BYTES = 8000
_DYING = 2.0
"""Seconds that a process which has closed its pipe may still need to end by itself."""
_KILLED = 10.0
"""Seconds that a process may need to end after it was killed: a GPU it used is freed in that time."""
_CODE = "import sys; from dsv2_compile.processes import main; main(int(sys.argv[1]), *sys.argv[2:])"


@dataclass(frozen=True)
class Failure:
    """A job without an answer. ``log``: the end of what was printed. ``crashed``: its process has ended or was late,
    and if ``opened``, after it had begun to take jobs."""

    reason: str
    log: str
    crashed: bool = False
    opened: bool = True


@dataclass(frozen=True)
class Worker:
    """How to start one. ``environment``: all of it, but for the path of modules. ``starting``: seconds until it takes
    jobs, at most."""

    module: str
    setup: Any = None
    environment: Mapping[str, str] | None = None
    starting: float = 60.0
    name: str = "the process"


class Workers:
    """``count`` processes at most, that live until `close`. ``alone``: what ends a process that had other jobs before,
    or others beside it, is tried once more in a new process with nothing else at work, so that only what is guilty by
    itself counts as such."""

    def __init__(self, worker: Worker, count: int = 1, alone: bool = False) -> None:
        self._worker, self._count, self._alone = worker, count, alone
        self._root = tempfile.TemporaryDirectory(prefix="dsv2-compile-", ignore_cleanup_errors=True)
        self._idle: list[Process] = []

    def run(
        self, jobs: Sequence[Any], timeouts: Sequence[float], deadline: float = math.inf
    ) -> Generator[tuple[int, Any], None, None]:
        """Yield (index of the job, answer or `Failure`) as they come. Closing the generator, or ``deadline`` of
        time.monotonic, stops what is left."""
        waiting, suspects = deque(range(len(jobs))), deque[int]()
        busy: list[Process] = []
        lonely: set[int] = set()
        """Jobs that nothing else was at work with, from their beginning on."""
        try:
            while (waiting or suspects or busy) and time.monotonic() < deadline:
                while waiting and len(busy) < self._count:
                    process = self._take()
                    index = waiting.popleft()
                    lonely = {index} if not busy else set()
                    process.give(index, jobs[index], timeouts[index])
                    busy.append(process)
                if suspects and not busy:
                    process, index = self._new(), suspects.popleft()
                    lonely = {index}
                    process.give(index, jobs[index], timeouts[index])
                    busy.append(process)
                soonest = min(deadline, *(p.deadline for p in busy))
                wait([p.pipe for p in busy], min(max(soonest - time.monotonic(), 0), threading.TIMEOUT_MAX))
                for process in list(busy):
                    outcome = process.outcome()
                    if outcome is None:
                        continue
                    busy.remove(process)
                    if process.alive:
                        self._idle.append(process)
                    guilty = process.index in lonely and (process.given == 1 or process.late)
                    crashed = isinstance(outcome, Failure) and outcome.crashed and outcome.opened
                    if self._alone and crashed and not guilty:
                        suspects.append(process.index)
                    else:
                        yield process.index, outcome
        finally:
            for process in busy:
                process.stop()

    def _take(self) -> Process:
        """An idle one that has not ended meanwhile, or a new one."""
        while self._idle:
            process = self._idle.pop()
            if not process.ended:
                return process
            process.stop()
        return self._new()

    def _new(self) -> Process:
        return Process(self._worker, Path(self._root.name))

    def close(self) -> None:
        while self._idle:
            self._idle.pop().stop()
        self._root.cleanup()


class Process:
    """In a group of its own, so that what it has started ends with it. ``given``: jobs so far; ``late``: it was
    stopped because the time of its job was up."""

    def __init__(self, worker: Worker, root: Path) -> None:
        self._worker = worker
        folder = Path(tempfile.mkdtemp(dir=root))
        self._log = folder / "log"
        self.pipe, theirs = Pipe()
        environment = os.environ if worker.environment is None else worker.environment
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-Pu", "-X", "faulthandler", "-c", _CODE, str(theirs.fileno()), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**environment, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            )
        self.index, self.given, self.alive, self.late, self._opened = -1, 0, True, False, False
        self._job: Any = None
        self._timeout, self.deadline = 0.0, time.monotonic() + worker.starting
        self._send((worker.module, worker.setup))

    def _send(self, what: Any) -> None:
        with suppress(OSError):  # it has ended, which `outcome` sees
            self.pipe.send(what)

    def give(self, index: int, job: Any, timeout: float) -> None:
        """It is sent when the process is ready: one that hangs before does not read, and sending would wait for it."""
        self.index, self._timeout, self._job = index, timeout, job
        self.given += 1
        if self._opened:
            self._begin()

    def _begin(self) -> None:
        job, self._job = self._job, None
        self.deadline = time.monotonic() + self._timeout
        self._send((job, 2 * self._timeout))

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def outcome(self) -> Any:
        """The answer; None while it works. A process that ends, is late or cannot go on is stopped."""
        reason = ""
        try:
            while self.pipe.poll():
                answer = self.pipe.recv()
                if answer is not None:
                    value, last = answer
                    if last:
                        self.stop()
                    return replace(value, log=self._tail()) if isinstance(value, Failure) else value
                self._opened = True
                self._begin()
            if time.monotonic() < self.deadline:
                return None
            self.late = True
            what = f"no answer in {self._timeout:g} s"
            reason = what if self._opened else f"{self._worker.name} was not ready after {self._worker.starting:g} s"
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_DYING)
        status = self.stop()
        return Failure(reason or f"{self._worker.name} {_ending(status)}", self._tail(), True, self._opened)

    def _tail(self) -> str:
        return self._log.read_bytes()[-_LOG_BYTES:].decode(errors="replace")

    def stop(self) -> int:
        """Kill the group. The exit status, the process's own if it had ended by itself. One that a driver keeps from
        ending is left to itself."""
        self.alive = False
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.pipe.close()
        try:
            return self._process.wait(_KILLED)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def main(fd: int, folder: str) -> None:
    """Inside: jobs from the socket ``fd`` until it closes. None is sent first: ready.

    ``folder`` takes temporary files. Standard output and error are the job's log; they are emptied before each.
    A job comes with the seconds after which SIGALRM ends it, should the parent not be able to; when the parent is
    gone the whole group ends, whatever it is at.
    """
    os.set_inheritable(fd, False)
    tempfile.tempdir = folder
    threading.Thread(target=_end_with_parent, args=(fd,), daemon=True).start()
    with Connection(fd) as pipe:
        module, setup = pipe.recv()
        answer = importlib.import_module(module).start(setup)
        pipe.send(None)
        while True:
            try:
                job, seconds = pipe.recv()
            except EOFError:
                return
            os.ftruncate(2, 0)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                value, last = answer(job)
            except Exception as e:
                value, last = Failure(f"{type(e).__name__}: {e}", ""), False
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send((value, last))
            if last:
                os._exit(1)  # what would be freed in the ordinary way cannot be


def _end_with_parent(fd: int) -> None:
    """The other end of the socket closes with its process, however that ends."""
    poll = select.poll()
    poll.register(fd, 0)  # of a closed end is told without being asked for
    poll.poll()
    os.killpg(os.getpgrp(), signal.SIGKILL)

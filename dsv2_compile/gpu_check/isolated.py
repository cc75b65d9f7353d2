"""Items of work in processes of their own: a fault of the GPU, a crash or a hang costs the item it came with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from dsv2_compile.gpu_check.options import ERROR, SKIPPED, Options, Row

STARTING = 120.0
"""Seconds that a process may take to import its part and open the GPU, beyond those of its first item."""
MOST_UNOPENED = 3
"""Processes in a row that could not open the GPU, after which no more are started."""
_DYING = 2.0
"""Seconds that a process which has closed its pipe may still need to end by itself."""
LATE = "the time was up"
"""Why an item is skipped."""
_LOG_BYTES = 2000
_CODE = "import sys; from dsv2_compile.gpu_check.worker import main; main(int(sys.argv[1]))"


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
    waiting = deque(enumerate(items))
    idle: list[_Process] = []
    busy: list[_Process] = []
    unopened = 0
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // workers))} if workers > 1 else {}

    def finish(index: int, answer: Row) -> None:
        done[index] = {**items[index], **answer}
        told(done[index])

    with tempfile.TemporaryDirectory(prefix="dsv2-gpu-check-", ignore_cleanup_errors=True) as logs:
        try:
            while (waiting or busy) and time.monotonic() < deadline and unopened < MOST_UNOPENED:
                while waiting and len(busy) < workers:
                    process = idle.pop() if idle else _Process(module, options, Path(logs), threads)
                    index, item = waiting.popleft()
                    process.give(index, item, item.get("timeout", timeout))
                    busy.append(process)
                first = min(deadline, *(p.deadline for p in busy))
                wait([p.pipe for p in busy], max(first - time.monotonic(), 0))
                for process in list(busy):
                    answer = process.outcome()
                    if answer is not None:
                        busy.remove(process)
                        unopened = unopened + 1 if answer.pop("unopened", False) else 0
                        finish(process.index, answer)
                        if process.alive:
                            idle.append(process)
            left = LATE if unopened < MOST_UNOPENED else "the device cannot be opened"
            status = SKIPPED if unopened < MOST_UNOPENED else ERROR
            for index in [p.index for p in busy] + [i for i, _ in waiting]:
                finish(index, {"status": status, "reason": left})
        finally:
            for process in [*busy, *idle]:
                process.stop()
    return [done[i] for i in range(len(items))]


class _Process:
    """In a group of its own, so that what it has started ends with it."""

    def __init__(self, module: str, options: Options, logs: Path, threads: Mapping[str, str]) -> None:
        self.pipe, theirs = Pipe()
        descriptor, name = tempfile.mkstemp(dir=logs)
        self._log = Path(name)
        with theirs, os.fdopen(descriptor, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-Pu", "-X", "faulthandler", "-c", _CODE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            )
        self.index, self.alive, self._opened = -1, True, False
        self.deadline = self._timeout = 0.0
        self._send((module, options))

    def _send(self, what: Any) -> None:
        with suppress(OSError):  # it has ended, which `outcome` sees
            self.pipe.send(what)

    def give(self, index: int, item: Row, timeout: float) -> None:
        self.index, self._timeout = index, timeout
        self.deadline = time.monotonic() + timeout + (0.0 if self._opened else STARTING)
        self._send(item)

    def outcome(self) -> Row | None:
        """None while it works. A process that ends, is late or cannot go on is stopped."""
        late = ""
        try:
            while self.pipe.poll():
                answer = self.pipe.recv()
                if answer is not None:
                    if answer.pop("last"):
                        self.stop()
                    return dict(answer)
                self._opened, self.deadline = True, time.monotonic() + self._timeout
            if time.monotonic() < self.deadline:
                return None
            late = f"no answer in {self._timeout:g} s" if self._opened else f"not opened in {STARTING:g} s"
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_DYING)
        status = self.stop()
        return {
            "status": ERROR,
            "reason": late or f"the process {_ending(status)}",
            "log": self._log.read_bytes()[-_LOG_BYTES:].decode(errors="replace"),
            "unopened": not self._opened,
        }

    def stop(self) -> int:
        """Kill the group. The exit status, the process's own if it had ended by itself."""
        self.alive = False
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.pipe.close()
        return self._process.wait()


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def answer(pipe: Connection, row: Row, last: bool) -> None:
    """From inside: the outcome of an item. ``last``: this process must not be given another."""
    pipe.send({**row, "last": last})


def opened(pipe: Connection) -> None:
    """From inside: items can be run now."""
    pipe.send(None)

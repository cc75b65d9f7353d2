"""A command in a process of its own, with its time and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL = 0.02  # seconds


@dataclass(frozen=True)
class Finished:
    """``peak_rss_bytes``: with mapped files. ``peak_private_bytes``: without, sampled every 20 ms.

    ``status``: exit status, negative for the signal that ended it. ``timed_out``: ended by us.
    """

    status: int
    seconds: float
    peak_rss_bytes: int
    peak_private_bytes: int
    stdout: str
    stderr: str
    timed_out: bool


def run(
    command: Sequence[str],
    stdin: str = "",
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """Run ``command`` to its end. After ``timeout`` seconds its process group is killed."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(stdin.encode())
        source.seek(0)
        start = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdin=source,
            stdout=out,
            stderr=err,
            cwd=cwd,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
        private, timed_out = 0, False
        try:
            while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
                private = max(private, _private(child.pid))
                if timeout is not None and time.perf_counter() - start > timeout:
                    timed_out, timeout = True, None
                    os.killpg(child.pid, signal.SIGKILL)
                time.sleep(_POLL)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            os.wait4(child.pid, 0)
            child.returncode = -signal.SIGKILL
            raise
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(ended[1])
        out.seek(0)
        err.seek(0)
        return Finished(
            child.returncode,
            seconds,
            ended[2].ru_maxrss * 1024,
            private,
            out.read().decode(errors="replace"),
            err.read().decode(errors="replace"),
            timed_out,
        )


def _private(pid: int) -> int:
    """Anonymous resident memory of one process; 0 once it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")), 0)

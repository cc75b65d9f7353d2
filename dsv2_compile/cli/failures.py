"""From whatever was raised to an error with a cause, a remedy and an exit code; clean stops on signals."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dsv2_compile.errors import Dsv2Error, IncompatibleError, ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc")


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived. A KeyboardInterrupt, so that what cleans up after that cleans up after both."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


class InterruptedByUser(Dsv2Error):
    """The command was stopped by a signal and has cleaned up. Exit 130 or 143."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name}", "Run the same command again to start over.")


class InternalError(Dsv2Error):
    """What nobody foresaw. Exit 1."""


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """The first SIGINT or SIGTERM inside raises `Stopped`; a second one, during clean-up, ends the process at once.

    A signal that the parent process ignores for us (a job put in the background) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending = True

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal pending
        if not pending:
            os._exit(128 + number)
        pending = False
        raise Stopped(number)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, stop) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def translate(e: BaseException, step: str = "") -> Dsv2Error:
    """``e`` as an error to tell. ``step`` is what was being done. The result's ``__cause__`` is ``e``."""
    error = _translate(e, f" during: {step}" if step else "")
    if error is not e:
        error.__cause__ = e
    return error


def _translate(e: BaseException, during: str) -> Dsv2Error:
    text = " ".join(str(e).split())
    if isinstance(e, Dsv2Error):
        return e
    if isinstance(e, KeyboardInterrupt):
        return InterruptedByUser(e.number if isinstance(e, Stopped) else signal.SIGINT)
    if (
        isinstance(e, MemoryError)
        or (isinstance(e, OSError) and e.errno == errno.ENOMEM)
        or (isinstance(e, RuntimeError) and any(t in text for t in _NO_MEMORY))
    ):
        return ResourceError(
            f"out of memory{during}", "Free memory, or use a machine with more; build --dry-run estimates it."
        )
    if isinstance(e, OSError) and e.errno in _FULL:
        where = f"writing {e.filename}" if e.filename else "writing"
        return ResourceError(f"{where} failed{during}: {e.strerror}", "Free disk space or choose another disk.")
    if isinstance(e, ImportError) and not (e.name or "").startswith("dsv2_compile"):
        return IncompatibleError(
            f"the Python package {(e.name or 'needed here').split('.')[0]} cannot be imported: {text}",
            "Install it with pip; dsv2-compile doctor lists what is needed.",
        )
    return InternalError(
        f"internal error{during}: {type(e).__name__}: {text[:300]}",
        "Run it again with -v to see the trace, and report it with the trace.",
    )

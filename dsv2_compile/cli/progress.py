"""How far long work is: one line that is redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import TextIO

from dsv2_compile.cli.format import duration, printable, size

REDRAW = 0.1
"""Least seconds between two drawings of the bar."""
REPEAT = 10.0
"""Least seconds between two plain lines on the same work."""
PATIENCE = 2.0
"""Seconds of work before a time left is told."""
BYTES = ", bytes"
"""Work whose name ends so counts bytes."""
_BAR = 24
_CLEAR = "\r\x1b[K"


class Progress:
    """Called as progress(what, done, total), total 0 where it is not known. ``write`` takes text for ``stream``."""

    def __init__(
        self,
        stream: TextIO | None,
        write: Callable[[str], None],
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._quiet, self._clock = write, quiet, clock
        self.terminal = stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.what = ""
        self._start = self._told = 0.0
        self._first = 0
        self._drawn = False

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None:
        """``detail`` follows the figures of the work; another one is no other work."""
        now = self._clock()
        new = what != self.what
        if new:
            self.what, self._start, self._first = what, now, done
        if self._quiet:
            return
        if not (new or now - self._told >= (REDRAW if self.terminal else REPEAT) or (self.terminal and done == total)):
            return
        self._told = now
        if self.terminal:
            line = self._line(done, total, now, detail)
            self._write(_CLEAR + line[: shutil.get_terminal_size().columns - 1])
            self._drawn = True
        else:
            self._write((self._name() if new else self._line(done, total, now, detail)) + "\n")

    def clear(self) -> None:
        """Take the bar off the terminal, so that a line can be written there."""
        if self._drawn:
            self._write(_CLEAR)
            self._drawn = False

    def _line(self, done: int, total: int, now: float, detail: str) -> str:
        name = self._name()
        if total <= 0:
            return name
        share = min(done / total, 1.0)
        number = size if self.what.endswith(BYTES) else str
        parts = [f"{name:<20}"] if self.terminal else [f"{name}:"]
        if self.terminal:
            full = int(share * _BAR)
            parts.append(f"[{'#' * full}{'.' * (_BAR - full)}]")
        parts.append(f"{share:4.0%} {number(done)} of {number(total)}")
        left = self._left(done, total, now)
        return " ".join(p for p in (*parts, left, printable(detail)) if p)

    def _name(self) -> str:
        return printable(self.what.removesuffix(BYTES))

    def _left(self, done: int, total: int, now: float) -> str:
        """From the rate since this work began; what a resumed build had done before does not count."""
        elapsed, made = now - self._start, done - self._first
        if elapsed < PATIENCE or made <= 0 or done >= total:
            return ""
        return f"{duration(elapsed * (total - done) / made)} left"

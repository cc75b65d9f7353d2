"""Where a command's words go: data to standard output, the rest to standard error, JSON in one object."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from dsv2_compile.cli.format import printable
from dsv2_compile.cli.progress import Progress
from dsv2_compile.errors import Dsv2Error

MAX_PROBLEMS = 50
"""Problems told in text; JSON has all."""


class Console:
    """``as_json``: nothing but the final object goes to standard output. ``quiet``: errors and warnings only.

    When the reader of standard output goes away (``| head``), the rest is dropped and ``reader_gone`` set.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json, self.quiet, self.verbose = as_json, quiet, verbose
        self.warnings: list[str] = []
        self.reader_gone = False
        self.progress = Progress(sys.stderr, self._err, quiet)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop

    def data(self, text: str, end: str = "\n") -> None:
        """OSError if it cannot be written, but for a reader that has gone."""
        if not self.as_json:
            self.progress.clear()
            self._out(text + end)

    def object(self, value: Mapping[str, Any]) -> None:
        self._out(json.dumps(plain(value), allow_nan=False) + "\n")

    def note(self, text: str) -> None:
        if not self.quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        self.warnings.append(printable(text))
        self._line(f"warning: {printable(text)}")

    def fail(self, error: Dsv2Error) -> None:
        """Cause, problems, remedy; with ``verbose`` the trace before them."""
        if self.verbose:
            self._line("".join(traceback.format_exception(error)).rstrip())
        shown = [f"  - {printable(p)}" for p in error.problems[:MAX_PROBLEMS]]
        if len(error.problems) > MAX_PROBLEMS:
            shown.append(f"  - and {len(error.problems) - MAX_PROBLEMS} more")
        self._line("\n".join([f"error: {printable(error.cause)}", *shown, f"help: {printable(error.remedy)}"]))

    def _line(self, text: str) -> None:
        self.progress.clear()
        self._err(text + "\n")

    def _err(self, text: str) -> None:
        if sys.stderr is not None:
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except OSError:
                _discard(sys.stderr)  # nobody is left to tell

    def _out(self, text: str) -> None:
        if self.reader_gone or sys.stdout is None:
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            self.reader_gone = True
            _discard(sys.stdout)
        except OSError:
            _discard(sys.stdout)
            raise


def _discard(stream: TextIO) -> None:
    """Point the stream at /dev/null: what it still holds would fail again when the interpreter ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def plain(value: Any) -> Any:
    """``value`` with what JSON has no word for replaced: an infinity or NaN by null, a path by its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value

"""Inside a process of `isolated`: a part is started once, then runs one item after the other.

A part is a module with ``start(options)`` -> its state, ``run(state, item)`` -> the fields of the row, and
``sound(state)``, which raises if the GPU has faulted.
"""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable
from typing import Any

from dsv2_compile.errors import Dsv2Error, IncompatibleError
from dsv2_compile.gpu_check.options import ERROR, Options, Row

_TRACE_LINES = 12


def start(setup: tuple[str, Options]) -> Callable[[Row], tuple[Row, bool]]:
    """A worker of `processes`."""
    module, options = setup
    try:
        part = importlib.import_module(module)
        state = part.start(options)
    except Exception as e:
        row = {**failure(e), "unopened": True}
        return lambda item: (dict(row), True)
    return lambda item: _run(part, state, item)


def _run(part: Any, state: Any, item: Row) -> tuple[Row, bool]:
    """The row, and whether the device is unusable from now on."""
    start = time.perf_counter()
    try:
        row = part.run(state, item)
    except Exception as e:
        row = failure(e)
    row["seconds"] = round(time.perf_counter() - start, 3)
    try:
        part.sound(state)
    except Exception as e:
        reason = f"the GPU has faulted: {_one_line(e)}"
        return {"reason": reason, **row, "status": ERROR, "fault": reason}, True
    return row, False


def failure(e: Exception) -> Row:
    """What a row says of an exception."""
    lines = traceback.format_exc().strip().splitlines()[-_TRACE_LINES:]
    row: Row = {"status": ERROR, "reason": _one_line(e), "log": "\n".join(lines)}
    if isinstance(e, IncompatibleError):
        row["incompatible"] = True
    return row


def _one_line(e: Exception) -> str:
    text = f"{e.cause} {e.remedy}" if isinstance(e, Dsv2Error) else f"{type(e).__name__}: {e}"
    return " ".join(text.split())[:400]

"""An interrupt at any point of a call leaves the session usable: its lock free, its sequences whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dsv2_compile.runtime import Engine
from tests import toy_engine


class Interrupt(KeyboardInterrupt):
    """What a signal handler raises."""


def interrupted(call: Any, moment: int) -> bool:
    """Run ``call``, raising at call or return number ``moment`` in the runtime or contextlib; False if it has fewer.

    CPython looks for signals when a function starts, a call ends or a loop turns. A trace function could also raise
    at the line of a ``with`` that is being left, where no signal arrives: those events are left out.
    """
    seen = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal seen
        name = frame.f_code.co_filename
        if "dsv2_compile/runtime/" not in name and not name.endswith("contextlib.py"):
            return None
        if event in ("call", "return"):
            if seen == moment:
                sys.settrace(None)
                raise Interrupt
            seen += 1
        return trace

    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("name", ["prefill", "extend", "decode", "free", "length"])
def test_the_lock_is_free_after_an_interrupt_anywhere(name, tmp_path):
    toy_engine.build(tmp_path / "e")
    with Engine.load(Path(tmp_path / "e")) as engine:
        moment = 0
        while True:
            session = engine.session(1, 16)
            session.prefill([[1, 2]], [2])
            calls = {
                "prefill": lambda s=session: s.prefill([[1, 2]], [2]),
                "extend": lambda s=session: s.extend([[3]], [1]),
                "decode": lambda s=session: s.decode([3]),
                "free": lambda s=session: s.free([0]),
                "length": lambda s=session: s.length(0),
            }
            hit = interrupted(calls[name], moment)
            assert session._lock.acquire(timeout=1), f"the lock is held after an interrupt at event {moment} of {name}"
            session._lock.release()
            session.close()
            if not hit:
                break
            moment += 1
        assert moment > 2

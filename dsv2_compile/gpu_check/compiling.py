"""Kernels are compiled before the GPU is opened, on all cores, into the cache that every process reads."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from dsv2_compile.backends.cuda.compile import compile_all
from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.kernels.gpu.kernel import Kernel
from dsv2_compile.targets import target


class _Late(Exception):
    pass


def compile_ahead(asked: Iterable[tuple[Request, Kernel]], target_name: str, deadline: float) -> dict[str, Any]:
    """In the order asked for, until ``deadline``. What is not done is compiled when it is needed, if ever."""
    todo: dict[Request, Kernel] = dict(asked)
    begin, count = time.monotonic(), [0]

    def progress(what: str, done: int, total: int) -> None:
        count[0] = done
        if time.monotonic() > deadline:
            raise _Late

    found: dict[str, Any] = {"kernels": len(todo)}
    try:
        made = compile_all(
            list(todo), target(target_name), progress=progress, kernels={k.name: k for k in todo.values()}
        )
        found["refused"] = sum(not m.ok for m in made)
        found["cached"] = sum(m.cached for m in made)
        found["spilling"] = [f"{m.request.kernel} {dict(m.request.config)}" for m in made if m.usage and m.usage.stack]
    except _Late:
        found["cut"] = True
    return {**found, "done": count[0], "seconds": round(time.monotonic() - begin, 1)}

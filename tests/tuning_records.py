"""Tuning records for tests: nothing in them was measured."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from dsv2_compile.autotune.record import MEASURED, PREDICTED, Record, key_of, launch_digest
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call
from dsv2_compile.targets import target
from tests.tuning import linear

__all__ = ["MEASURED", "PREDICTED", "changed", "record", "sealed"]


def record(call: Call | None = None, gpu: str = "h800", config: dict[str, int] | None = None, **fields: Any) -> Record:
    """One that a build for ``gpu`` uses. ``fields`` of `Record`; changes of ``config`` to the kernel's default."""
    call = call or linear()
    compilers = toolchain(target(gpu))
    key = key_of(call, gpu, compilers.triton, compilers.ptxas)
    whole = {**KERNELS[call.kernel].default(dict(call.dims), target(gpu)), **(config or {})}
    known: dict[str, Any] = {
        "provenance": MEASURED if fields.get("device") else PREDICTED,
        "microseconds": 12.5,
        "default_microseconds": 20.0,
        "bound": 5.0,
        "launch": launch_digest(key, whole),
        "model": 1,
        "device": "",
        "checks": ("none",),
        "trials": 7,
        "created": 1_700_000_000,
    }
    return Record(key=key, config=tuple(sorted(whole.items())), **{**known, **fields})


def changed(found: Record, **parts: Any) -> Record:
    """With another key."""
    return replace(found, key=replace(found.key, **parts))


def sealed(body: str) -> bytes:
    """A line with a seal that fits, whatever ``body``, the text of an object, says."""
    return f'{body[:-1]},"check":"{hashlib.sha256(body.encode()).hexdigest()[:16]}"}}\n'.encode()

"""The sizes that a program is made to be fast at, and costed at."""

from __future__ import annotations

from collections.abc import Mapping

from dsv2_compile.passes.absorb import WORKLOADS

EXTEND_CONTEXT = 8192
"""Positions that are cached when an extend begins."""


def workload(phase: str, limits: Mapping[str, int]) -> dict[str, int]:
    """rows, batch and context of a call. Decode: the largest batch, at the context of its workload; prefill and
    extend: one sequence of as many new rows as a call may have."""
    rows = limits["rows"]
    if phase == "decode":
        context = rows * (WORKLOADS["decode"].context + 1)
        return {"rows": rows, "batch": rows, "context": min(context, limits["context"])}
    context = rows + (EXTEND_CONTEXT if phase == "extend" else 0)
    return {"rows": rows, "batch": 1, "context": min(context, limits["context"])}

"""Remove values nothing uses, and recipes no node names."""

from __future__ import annotations

from dsv2_compile.passes.core import Outcome, Pass, register, sweep
from dsv2_compile.program import Program


@register
class DeadCode(Pass):
    """Every operator of the dialect is pure, so a value without users can go."""

    name = "dead_code"

    def apply(self, program: Program) -> Outcome:
        return Outcome(sweep(program))

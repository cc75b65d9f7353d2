"""What is asked for, and what every process of a check is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
"""One thing that was checked or measured, as it stands in the JSON: ``id`` and ``status`` at least."""

OK, WRONG, ERROR, REFUSED, SKIPPED = "ok", "wrong", "error", "refused", "skipped"
"""Statuses. WRONG: something computed something else than it should. ERROR: nothing was computed. REFUSED: a
configuration that no engine starts from does not compile or fit. SKIPPED: the time was up, or nothing was asked for."""
CASES = "dsv2_compile.kernels.gpu.cases"


@dataclass(frozen=True)
class Options:
    """``engines``: directories of engines with weights, ``plans`` of engines without. ``target``: the profile that
    kernels are compiled for. ``cases``: the module whose CASES are run. ``machine``: what was measured of the GPU."""

    host: bool = False
    engines: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()
    target: str = "h200"
    cases: str = CASES
    machine: dict[str, Any] = field(default_factory=dict)

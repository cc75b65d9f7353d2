"""Executors for tests, on a driver that has no GPU; and calls of their programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv2_compile.engine.placement import Placement
from dsv2_compile.plan.pack import pack
from dsv2_compile.plan.plan import Plan
from dsv2_compile.runtime.native import cuda
from tests import native_plans
from tests.native_driver import RecordingDriver
from tests.native_plans import Arrays

SLOTS = 64


def opened(
    monkeypatch: pytest.MonkeyPatch, plan: Plan, root: Path, driver: RecordingDriver, **options: Any
) -> tuple[cuda.CudaExecutor, Arrays]:
    """An executor of ``plan`` on ``driver``, and the weights that lie in ``root``."""
    weights = native_plans.random_weights(plan, 1)
    placed = native_plans.write_engine(root, plan, weights)
    monkeypatch.setattr(cuda, "open_driver", lambda device: driver)
    monkeypatch.setattr(cuda, "STAGING_BYTES", 4096)
    return cuda.CudaExecutor(plan, root, placed, **{"slots": SLOTS, **options}), weights


def call(plan: Plan, name: str, past: list[int], counts: list[int], page: int = 16) -> tuple[dict[str, int], Arrays]:
    """Symbols and inputs of sequences in pages of their own, in reverse."""
    tokens = [np.arange(1, n + 1) for n in counts]
    need = [-(-(p + n) // page) for p, n in zip(past, counts, strict=True)]
    tables, last = np.zeros((len(counts), plan.pages), np.int32), sum(need)
    for table, n in zip(tables, need, strict=True):
        table[:n] = np.arange(last - 1, last - n - 1, -1)
        last -= n
    return pack(plan.programs[name], page, tokens, past, tables)


def placements() -> dict[str, Placement]:
    """Of the weights of `native_plans.toy`, in one file."""
    shapes = {"embed": (64, 30), "head": (544, 10)}
    return {n: Placement("w", at, rows * 16, "bfloat16", (rows, 8)) for n, (at, rows) in shapes.items()}

"""A native engine, loaded: its plan, the GPU that runs it, and the pages of its cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsv2_compile.engine.manifest import Manifest
from dsv2_compile.errors import IncompatibleError, UsageError
from dsv2_compile.plan import text
from dsv2_compile.plan.plan import FILE, Plan
from dsv2_compile.runtime.loaders import Pages
from dsv2_compile.runtime.native import memory
from dsv2_compile.runtime.native.launches import scratch_bytes
from dsv2_compile.runtime.native.opening import require_architecture
from dsv2_compile.runtime.native.pages import PagePool
from dsv2_compile.runtime.native.store import Executor, PagedStore
from dsv2_compile.targets import TARGETS

if TYPE_CHECKING:
    from dsv2_compile.runtime.engine import Engine

SHARE = 0.95
"""Part of the free memory that is taken unasked."""


def require_compatible(manifest: Manifest) -> None:
    """IncompatibleError for an engine without weights, and for a machine without a GPU of its architecture."""
    if not manifest.weights:
        raise IncompatibleError(
            "The engine was built with --no-weights: it holds a plan and kernels only.",
            "Build it again without --no-weights.",
        )
    from dsv2_compile.runtime.native.cuda_core import open_driver

    driver = open_driver(0)
    try:
        require_architecture(driver, TARGETS[manifest.target].capability, manifest.target)
    finally:
        driver.close()


class NativeModel:
    """``executor`` runs ``plan`` over a cache of ``pages`` pages, which all sessions share."""

    def __init__(self, plan: Plan, executor: Executor, pages: int) -> None:
        self.plan, self.executor = plan, executor
        self.pool = PagePool(pages, plan.page)

    def pages(self) -> Pages:
        return Pages(self.pool.size, self.pool.count, self.pool.free)

    def store(self, engine: Engine, slots: int, max_tokens: int) -> PagedStore:
        return PagedStore(self.plan, self.executor, self.pool, slots)

    def close(self) -> None:
        self.executor.close()


def load(root: Path, manifest: Manifest, threads: int, cache_tokens: int | None) -> NativeModel:
    """On the first GPU. ``cache_tokens`` None: room for max_batch_size sequences of max_seq_len positions, or for as
    many as the GPU's free memory holds."""
    from dsv2_compile.runtime.native.cuda import CudaExecutor

    with open(root / FILE, "rb") as f:
        plan = text.parse(f.read(text.MAX_BYTES + 1))
    tokens = _fitting(plan, manifest) if cache_tokens is None else cache_tokens
    if tokens < 1:
        raise UsageError(f"cache_tokens is {tokens}.", "Give the cache room for one token at least.")
    pages = -(-tokens // plan.page)
    return NativeModel(plan, CudaExecutor(plan, root, manifest.weights, pages * plan.page), pages)


def _fitting(plan: Plan, manifest: Manifest) -> int:
    """Positions; a page if there is room for none, so that it is the executor that says what is missing."""
    from dsv2_compile.runtime.native.cuda_core import open_driver

    driver = open_driver(0)
    try:
        free, _ = driver.memory()
    finally:
        driver.close()
    layout = memory.weight_layout(plan, manifest.weights)
    rest = memory.needs(plan, layout, plan.page, scratch_bytes(plan, plan.page)).total
    row = memory.cache_buffer(plan).nbytes({"slots": 1})
    fits = int(SHARE * free - rest) // row // plan.page * plan.page
    return max(plan.page, min(manifest.max_batch_size * manifest.max_seq_len, fits))

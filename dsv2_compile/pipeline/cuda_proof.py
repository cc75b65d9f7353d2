"""The proof of a GPU engine without a GPU: its plan, executed on the host, against the eager model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsv2_compile.backends.cuda.host import Arrays, HostExecutor
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.engine import integrity
from dsv2_compile.engine.manifest import Manifest
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.pipeline.cuda_plan import programs_of, uncompiled
from dsv2_compile.pipeline.plan_engine import PlanEngine
from dsv2_compile.plan.dtypes import NAMES, NUMPY, SHORT
from dsv2_compile.plan.expr import evaluate
from dsv2_compile.plan.plan import FILE, Plan
from dsv2_compile.plan.text import parse
from dsv2_compile.program import Program
from dsv2_compile.progress import Progress
from dsv2_compile.request import BuildRequest
from dsv2_compile.runtime.native import model
from dsv2_compile.targets import target
from dsv2_compile.verify import Report, make_golden, verify_engine
from dsv2_compile.verify import plan as plans
from dsv2_compile.verify.check import check
from dsv2_compile.verify.passes import RandomWeights
from dsv2_compile.weights import TensorSource

STEPS = 16
"""Tokens decoded after each prompt."""
PATHS = ("batch", "chunks", "far")
"""Of the plan's paths: the host runs one program after the other, so to repeat a path would prove nothing more."""
MOST_BLOCKS = 6000
"""Blocks of a decode step that the host executes in a few seconds; above, the twin stands for the model."""
ON_HOST = "this engine's own plan, every launch by the interpreter on the host; never executed on a GPU"
ON_TWIN = "the plan of the model's shrunken twin, on the host; this engine itself has never been executed"
ON_GPU = "this engine's plan and cubins, on a GPU"
MOST_PAGES = 68
"""Pages of a sequence that the check needs: its far path ends near position 4,300."""
TWIN_POSITIONS = 4300
"""So that the far path passes the 4096 positions after which YaRN scales."""


def blocks(plan: Plan) -> int:
    """Blocks that the launches of a smallest decode step have."""
    program = next(p for p in plan.programs.values() if p.phase == "decode")
    at = {"rows": 1, "batch": 1, "context": plan.page, "slots": plan.page}
    return sum(math.prod(evaluate(g, at) for g in launch.grid) for launch in program.launches)


def verify(
    writer: EngineWriter, manifest: Manifest, checkpoint: Checkpoint, request: BuildRequest, progress: Progress
) -> Report:
    """The staged engine's own plan, every launch by the interpreter on host memory; the twin's where that would
    take hours, or where there are no weights."""
    if request.no_weights or blocks(parse((writer.stage / FILE).read_bytes())) > MOST_BLOCKS:
        return on_twin(manifest, dict(request.mla_form), progress)
    limits = manifest.max_batch_size, manifest.max_seq_len
    golden = make_golden(manifest.model, checkpoint, manifest.dtype, *limits, progress=progress, steps=STEPS)
    golden.write(writer)
    writer.seal(manifest)
    return prove(writer.stage, None, progress)


def on_twin(manifest: Manifest, forms: Mapping[str, str], progress: Progress) -> Report:
    """The model's twin, of random weights, through the same passes, lowering and kernel sources, on the host."""
    twin, gpu = manifest.model.twin(), target(manifest.target)
    positions = min(manifest.max_seq_len, TWIN_POSITIONS)
    batch = min(manifest.max_batch_size, plans.SEQUENCES)
    compiled = programs_of(twin, gpu, positions, forms, progress, check=False)
    plan = uncompiled(compiled, gpu, SHORT[manifest.dtype], batch, positions, progress)
    source = RandomWeights(twin, 0)
    golden = make_golden(twin, source, manifest.dtype, batch, positions, progress=progress, steps=STEPS)
    held = stored(compiled.programs, plan, source)
    executor = HostExecutor(plan, held, batch * plan.pages * plan.page)
    engine = PlanEngine(plan, twin, executor, positions)
    return replace(check(engine, twin, golden, "the twin", progress, PATHS), executed=ON_TWIN, of_engine=False)


def stored(programs: Mapping[str, Program], plan: Plan, source: TensorSource) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of the plan that ``programs`` were lowered to, as an engine would hold them."""
    recipes = {n: r for p in programs.values() for n, r in p.weights.recipes.items()}
    dtype = getattr(torch, NAMES[plan.dtype])
    read = {n for p in plan.programs.values() for n, b in p.buffers.items() if b.place == "weight"}
    values = {n: recipes[n].evaluate(source, recipes[n].stored_dtype(dtype)) for n in sorted(read)}
    return {n: (v.view(torch.uint16) if v.dtype == torch.bfloat16 else v).numpy() for n, v in values.items()}


def prove(root: Path, checkpoint: Checkpoint | None, progress: Progress) -> Report:
    """Check the engine at ``root`` as `verify_engine` does: on a GPU it is built for, else on the host.

    IncompatibleError for one without weights."""
    manifest = integrity.read_manifest(root)
    if not manifest.weights:
        raise IncompatibleError(
            f"{root} holds a plan and kernels only: there is nothing of its own to compare.",
            "Build it without --no-weights.",
        )
    try:
        model.require_compatible(manifest)
    except IncompatibleError:
        report = verify_engine(root, checkpoint, progress=progress, opener=_opener(_host), names=PATHS)
        return replace(report, executed=ON_HOST)
    report = verify_engine(root, checkpoint, progress=progress, opener=_opener(_gpu))
    return replace(report, executed=ON_GPU)


Start = Callable[[Plan, Path, Manifest, int], Any]


def _opener(start: Start) -> Callable[[Path, int | None], AbstractContextManager[PlanEngine]]:
    @contextmanager
    def opened(root: Path, threads: int | None) -> Iterator[PlanEngine]:
        manifest = integrity.read_manifest(root)
        integrity.verify(root, manifest)
        plan = parse((root / FILE).read_bytes())
        pages = min(plan.pages, MOST_PAGES) * manifest.max_batch_size
        executor = start(plan, root, manifest, pages * plan.page)
        try:
            yield PlanEngine(plan, manifest.model, executor, manifest.max_seq_len)
        finally:
            executor.close()

    return opened


def _host(plan: Plan, root: Path, manifest: Manifest, slots: int) -> HostExecutor:
    return HostExecutor(plan, weights(root, manifest), slots)


def _gpu(plan: Plan, root: Path, manifest: Manifest, slots: int) -> Any:
    from dsv2_compile.runtime.native.cuda import CudaExecutor

    return CudaExecutor(plan, root, manifest.weights, slots)


def weights(root: Path, manifest: Manifest) -> Arrays:
    """Every weight, mapped; bf16 as its bits."""
    return {
        name: np.memmap(root / w.file, NUMPY[SHORT[w.dtype]], "r", w.offset, w.shape)
        for name, w in manifest.weights.items()
    }

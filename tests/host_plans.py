"""Native plans of small models that run on the host: lowered as a build does it, but for the compiler's cubins."""

from __future__ import annotations

import math

from dsv2_compile.backends.cuda import emit
from dsv2_compile.backends.cuda.draft import Draft
from dsv2_compile.backends.cuda.host import HostExecutor
from dsv2_compile.backends.cuda.lowering import lower
from dsv2_compile.compiler import CompileOptions, compile_program
from dsv2_compile.config import ModelConfig
from dsv2_compile.kernels.gpu.shapes import PAGE
from dsv2_compile.pipeline.cuda_plan import PROGRAMS
from dsv2_compile.pipeline.cuda_proof import stored
from dsv2_compile.pipeline.plan_engine import PlanEngine
from dsv2_compile.plan.plan import Plan
from dsv2_compile.program import Program
from dsv2_compile.targets import target
from dsv2_compile.weights import TensorSource


def program(config: ModelConfig, phase: str, positions: int, form: str = "", gpu: str = "h800") -> Program:
    """The fused program that ``phase`` of a plan is lowered from."""
    source, usual = PROGRAMS[phase]
    options = CompileOptions(target(gpu), positions, {source: form or usual}, check=False)
    return compile_program(config, source, options)[0]


def limits(phase: str, batch: int, positions: int) -> dict[str, int]:
    rows = batch if phase == "decode" else batch * positions
    return {"rows": rows, "batch": batch, "context": batch * positions}


def lowered(
    programs: dict[str, Program], dtype: str, batch: int, positions: int, gpu: str = "h800"
) -> dict[str, Draft]:
    pages = math.ceil(positions / PAGE)
    return {p: lower(programs[p], p, target(gpu), dtype, limits(p, batch, positions), pages) for p in programs}


def plan_of(drafts: dict[str, Draft], dtype: str, positions: int, gpu: str = "h800") -> Plan:
    named = {(p, p): draft for p, draft in drafts.items()}
    return emit.plan(
        target(gpu), dtype, PAGE, math.ceil(positions / PAGE), named, emit.uncompiled(emit.requests(drafts.values()))
    )


def host_engine(
    config: ModelConfig, source: TensorSource, dtype: str = "fp32", batch: int = 3, positions: int = 192
) -> PlanEngine:
    programs = {p: program(config, p, positions) for p in PROGRAMS}
    plan = plan_of(lowered(programs, dtype, batch, positions), dtype, positions)
    executor = HostExecutor(plan, stored(programs, plan, source), batch * plan.pages * PAGE)
    return PlanEngine(plan, config, executor, positions)

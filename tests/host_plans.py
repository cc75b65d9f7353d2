"""Native plans of small models that run on the host: lowered as a build does it, but for the compiler's cubins."""

from __future__ import annotations

import math

import numpy as np
import torch

from dsv2_compile.backends.cuda import emit
from dsv2_compile.backends.cuda.draft import Draft
from dsv2_compile.backends.cuda.host import HostExecutor
from dsv2_compile.backends.cuda.lowering import lower
from dsv2_compile.backends.cuda.plan_engine import PlanEngine
from dsv2_compile.backends.cuda.values import PAGE
from dsv2_compile.compiler import CompileOptions, compile_program
from dsv2_compile.config import ModelConfig
from dsv2_compile.plan.plan import Plan
from dsv2_compile.program import Program
from dsv2_compile.targets import target
from dsv2_compile.weights import TensorSource

FORMS = {"prefill": ("prefill", "expanded"), "extend": ("prefill", "absorbed"), "decode": ("decode", "absorbed")}
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def program(config: ModelConfig, phase: str, positions: int, form: str = "", gpu: str = "h800") -> Program:
    """The fused program that ``phase`` of a plan is lowered from."""
    source, usual = FORMS[phase]
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


def weights(programs: dict[str, Program], plan: Plan, source: TensorSource) -> dict[str, np.ndarray]:
    """What an engine's files would hold."""
    recipes = {n: r for p in programs.values() for n, r in p.weights.recipes.items()}
    read = {n for p in plan.programs.values() for n, b in p.buffers.items() if b.place == "weight"}
    out = {}
    for name in sorted(read):
        value = recipes[name].evaluate(source, recipes[name].stored_dtype(TORCH[plan.dtype]))
        out[name] = value.view(torch.uint16).numpy() if value.dtype == torch.bfloat16 else value.numpy()
    return out


def host_engine(
    config: ModelConfig, source: TensorSource, dtype: str = "fp32", batch: int = 3, positions: int = 192
) -> PlanEngine:
    programs = {p: program(config, p, positions) for p in FORMS}
    plan = plan_of(lowered(programs, dtype, batch, positions), dtype, positions)
    executor = HostExecutor(plan, weights(programs, plan, source), batch * plan.pages * PAGE)
    return PlanEngine(plan, config, executor, positions)

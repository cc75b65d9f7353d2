"""From fused programs to a native plan: every program lowered, every kernel compiled."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.autotune.base import Base
from dsv2_compile.backends.cuda import costs, emit
from dsv2_compile.backends.cuda.choice import Choice
from dsv2_compile.backends.cuda.compile import Compiled as CompiledKernel
from dsv2_compile.backends.cuda.compile import compile_all
from dsv2_compile.backends.cuda.draft import Choose, Draft
from dsv2_compile.backends.cuda.lowering import lower
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.compiler import Compiled, CompileOptions, compile_program
from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.kernels.gpu.shapes import PAGE
from dsv2_compile.pipeline import cuda_records
from dsv2_compile.plan.plan import Plan
from dsv2_compile.progress import Progress
from dsv2_compile.targets import Target

PROGRAMS = {"prefill": ("prefill", "expanded"), "extend": ("prefill", "absorbed"), "decode": ("decode", "absorbed")}
"""By phase of the plan: the phase of the model it is lowered from, and the form of MLA."""
PREFILL_ROWS = 2048
"""Most new tokens of one call of prefill or extend."""
PREFILL_CONTEXT = 8192
"""Most visible positions of one call of prefill, whose keys and values are expanded; extend takes what is longer."""
ROUNDS = 8
"""Configurations that a kernel is tried with, the best known first, until one can be launched and does not spill. The
last is its default, whatever is wrong with that."""
STEPS = (1, 8, 32, 128)
"""Decode programs are made for these batches below the largest, and for that."""


@dataclass(frozen=True)
class Planned:
    """``images``: cubins by file name. ``report``: what launches and kernels take, for `inspect`. ``tuning``: of every
    call its configuration and where that is from, see `cuda_records`."""

    plan: Plan
    images: dict[str, bytes]
    report: dict[str, Any]
    tuning: list[dict[str, Any]]
    warnings: tuple[str, ...]


def programs_of(
    config: ModelConfig,
    gpu: Target,
    positions: int,
    forms: Mapping[str, str],
    progress: Progress,
    check: bool = True,
    bisect: bool = False,
    dump_ir: Path | None = None,
) -> Compiled:
    """The fused program of every phase of a plan; ``forms`` of MLA by phase, over those of `PROGRAMS`."""
    programs, records = {}, []
    for phase, (source, form) in PROGRAMS.items():
        progress(f"export and passes, {phase}", 0, 0)
        chosen = forms.get(phase, form)
        dump = None if dump_ir is None else dump_ir / phase
        options = CompileOptions(gpu, positions, {source: chosen}, check=check, bisect=bisect, dump=dump)
        program, done = compile_program(config, source, options)
        programs[phase] = program
        records += [replace(r, phase=phase) for r in done]
    return Compiled(programs, records)


def plan_of(
    compiled: Compiled,
    gpu: Target,
    dtype: str,
    max_batch: int,
    positions: int,
    progress: Progress,
    records: Base,
) -> Planned:
    """Lower every program and compile every kernel. IncompatibleError if one cannot be had for ``gpu``."""
    choice = Choice(cuda_records.configs_of(records))
    for left in reversed(range(ROUNDS)):
        drafts = drafts_of(compiled, gpu, dtype, max_batch, positions, progress, choice)
        built = compile_all(emit.requests(drafts.values()), gpu, progress=progress)
        wanting = [k.request for k in built if not k.ok or (k.report and k.report.spills)]
        if not wanting:
            break
        for request in wanting:
            choice.reject(request) if left > 1 else choice.give_up(request)
    _require_kernels(built, gpu)
    entries, images = {}, {}
    for kernel in built:
        assert kernel.cubin is not None
        file = f"kernels/{kernel.request.kernel}.{_digest(kernel, gpu)}.cubin"
        images[file] = kernel.cubin.image
        entries[kernel.request] = emit.entry(kernel.request, kernel.cubin, file)
    plan = emit.plan(gpu, dtype, PAGE, pages_of(positions), drafts, entries)
    report = costs.report(drafts, {k.request: k for k in built}, gpu)
    tuning = cuda_records.used(drafts.values(), records, gpu)
    notes = (*_spills(built), *cuda_records.warnings(tuning, records, gpu))
    return Planned(plan, dict(sorted(images.items())), report, tuning, notes)


def uncompiled(compiled: Compiled, gpu: Target, dtype: str, max_batch: int, positions: int, progress: Progress) -> Plan:
    """The same plan for the host alone, which needs no cubin."""
    drafts = drafts_of(compiled, gpu, dtype, max_batch, positions, progress, Choice())
    entries = emit.uncompiled(emit.requests(drafts.values()))
    return emit.plan(gpu, dtype, PAGE, pages_of(positions), drafts, entries)


def drafts_of(
    compiled: Compiled, gpu: Target, dtype: str, max_batch: int, positions: int, progress: Progress, choose: Choose
) -> dict[tuple[str, str], Draft]:
    """By name and phase."""
    drafts = {}
    for name, (phase, limits) in variants(max_batch, positions).items():
        progress(f"launches of {name}", 0, 0)
        drafts[name, phase] = lower(compiled.programs[phase], phase, gpu, dtype, limits, pages_of(positions), choose)
    return drafts


def pages_of(positions: int) -> int:
    return math.ceil(positions / PAGE)


def variants(max_batch: int, positions: int) -> dict[str, tuple[str, dict[str, int]]]:
    """Name of every program of a plan -> its phase and limits; the smallest of a phase first."""
    rows = min(PREFILL_ROWS, max_batch * positions)
    found = {
        "prefill": (
            "prefill",
            {"rows": rows, "batch": max_batch, "context": min(PREFILL_CONTEXT, max_batch * positions)},
        ),
        "extend": ("extend", {"rows": rows, "batch": max_batch, "context": max_batch * positions}),
    }
    for batch in (*(b for b in STEPS if b < max_batch), max_batch):
        found[f"decode-{batch}"] = ("decode", {"rows": batch, "batch": batch, "context": batch * positions})
    return found


def _require_kernels(built: list[CompiledKernel], gpu: Target) -> None:
    failed = [k for k in built if not k.ok]
    if failed:
        raise IncompatibleError(
            f"{len(failed)} of {len(built)} kernels cannot be had for {gpu.name}: {failed[0].request.kernel}, "
            f"{failed[0].reason}",
            f"use another GPU or the triton that this version is tested with ({toolchain(gpu).triton} is installed)",
            [f"{k.request.kernel} {dict(k.request.dims)} {dict(k.request.config)}: {k.reason}" for k in failed],
        )


def _spills(built: list[CompiledKernel]) -> tuple[str, ...]:
    found = [k for k in built if k.usage is not None and k.usage.stack]
    return tuple(
        f"kernel {k.request.kernel} spills {k.usage.stack} bytes a thread with {dict(k.request.config)}"
        for k in found
        if k.usage is not None
    )


def _digest(kernel: CompiledKernel, gpu: Target) -> str:
    """Tells cubins apart: their bytes, and what a launch has to claim."""
    assert kernel.cubin is not None
    h = hashlib.sha256(kernel.cubin.image)
    h.update(repr((kernel.request.dtype, kernel.request.aligned, gpu.capability)).encode())
    return h.hexdigest()[:16]

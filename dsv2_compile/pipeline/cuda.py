"""The native GPU backend as a build sees it: a plan, one cubin a kernel, no GPU needed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.backends.cuda import costs, emit
from dsv2_compile.backends.cuda.compile import Compiled as CompiledKernel
from dsv2_compile.backends.cuda.compile import compile_all
from dsv2_compile.backends.cuda.lowering import lower
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.backends.cuda.values import PAGE
from dsv2_compile.compiler import Compiled, CompileOptions, compile_program
from dsv2_compile.config import ModelConfig
from dsv2_compile.engine.manifest import ProgramEntry, TensorEntry
from dsv2_compile.errors import IncompatibleError, ResourceError, UsageError
from dsv2_compile.pipeline.artifact import Artifact
from dsv2_compile.pipeline.cuda_proof import verify
from dsv2_compile.plan.expr import Expr
from dsv2_compile.plan.plan import FILE, Plan
from dsv2_compile.plan.text import to_bytes
from dsv2_compile.program import Program
from dsv2_compile.progress import Progress
from dsv2_compile.request import BuildRequest
from dsv2_compile.targets import GPUS, Target, target
from dsv2_compile.weights import Recipe

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Names on the command line and in manifests, and Triton's."""
TOOLS = ("torch", "triton", "numpy", "safetensors")
PROGRAMS = {"prefill": ("prefill", "expanded"), "extend": ("prefill", "absorbed"), "decode": ("decode", "absorbed")}
"""By phase of the plan: the phase of the model it is lowered from, and the form of MLA."""
DECODE_FORMS = ("absorbed", "merged")
PREFILL_ROWS = 2048
"""Most new tokens of one call of prefill or extend."""
PREFILL_CONTEXT = 8192
"""Most visible positions of one call of prefill, whose keys and values are expanded; extend takes what is longer."""
STEPS = (1, 8, 32, 128)
"""Decode programs are made for these batches below the largest, and for that."""

__all__ = ["make", "verify"]


def make(config: ModelConfig, request: BuildRequest, progress: Progress) -> Artifact:
    gpu, dtype = _target(request), request.dtype or "bfloat16"
    positions = request.max_seq_len or config.max_position_embeddings
    compiled = _programs(config, request, gpu, positions, progress)
    recipes = _recipes(compiled)
    if not request.no_weights:
        _require_room(config, gpu, recipes, dtype, positions)
    plan, images, report, warnings = plan_of(compiled, gpu, DTYPES[dtype], request.max_batch_size, positions, progress)
    files = {FILE: to_bytes(plan), **images, costs.FILE: (json.dumps(report, indent=1) + "\n").encode()}
    return Artifact(
        backend="cuda",
        target=gpu.name,
        dtype=getattr(torch, dtype),
        compiled=compiled,
        recipes={} if request.no_weights else recipes,
        entries={name: _entry(plan, name, compiled) for name in plan.programs},
        files=lambda placement: files,
        tools=TOOLS,
        nbytes=sum(map(len, files.values())),
        warnings=warnings,
    )


def _target(request: BuildRequest) -> Target:
    gpu = target(request.gpu or "")
    dtype = DTYPES.get(request.dtype or "bfloat16", "")
    if dtype not in gpu.architecture.dtypes:
        raise UsageError(
            f"{gpu.name} does not compute in {request.dtype}",
            f"use --dtype {', '.join(n for n, short in DTYPES.items() if short in gpu.architecture.dtypes)}",
        )
    for phase, form in request.mla_form.items():
        allowed = DECODE_FORMS if phase == "decode" else ("expanded",)
        if form not in allowed:
            raise UsageError(
                f"--mla-form {phase}={form} is not one that GPU engines have",
                f"{phase} may be {' or '.join(allowed)}; long prefixes are always read absorbed",
            )
    return gpu


def _programs(config: ModelConfig, request: BuildRequest, gpu: Target, positions: int, progress: Progress) -> Compiled:
    programs, records = {}, []
    for phase, (source, form) in PROGRAMS.items():
        progress(f"export and passes, {phase}", 0, 0)
        chosen = request.mla_form.get(phase, form)
        dump = None if request.dump_ir is None else request.dump_ir / phase
        options = CompileOptions(gpu, positions, {source: chosen}, bisect=request.bisect, dump=dump)
        program, done = compile_program(config, source, options)
        programs[phase] = program
        records += [replace(r, phase=phase) for r in done]
    return Compiled(programs, records)


def _recipes(compiled: Compiled) -> dict[str, Recipe]:
    found: dict[str, Recipe] = {}
    for program in compiled.programs.values():
        read = {str(n.target) for n in program.graph.nodes if n.op == "get_attr"}
        found |= {name: program.weights[name] for name in read}
    return dict(sorted(found.items()))


def plan_of(
    compiled: Compiled, gpu: Target, dtype: str, max_batch: int, positions: int, progress: Progress
) -> tuple[Plan, dict[str, bytes], dict[str, Any], tuple[str, ...]]:
    """Lower and compile: the plan, its cubins by file name, what launches and kernels take, and warnings."""
    pages = math.ceil(positions / PAGE)
    drafts = {}
    for name, (phase, limits) in variants(max_batch, positions).items():
        progress(f"launches of {name}", 0, 0)
        drafts[name, phase] = lower(compiled.programs[phase], phase, gpu, dtype, limits, pages)
    built = compile_all(emit.requests({name: d for (name, _), d in drafts.items()}), gpu, progress=progress)
    _require_kernels(built, gpu)
    entries, images = {}, {}
    for kernel in built:
        assert kernel.cubin is not None
        file = f"kernels/{kernel.request.kernel}.{_digest(kernel, gpu)}.cubin"
        images[file] = kernel.cubin.image
        entries[kernel.request] = emit.entry(kernel.request, kernel.cubin, file)
    plan = emit.plan(gpu, dtype, PAGE, pages, drafts, entries)
    report = costs.report(drafts, {k.request: k for k in built}, gpu)
    return plan, dict(sorted(images.items())), report, _spills(built)


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


def _entry(plan: Plan, name: str, compiled: Compiled) -> ProgramEntry:
    program = plan.programs[name]
    long = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "i32": "int32"}

    def dim(size: int | Expr) -> int | str:
        if isinstance(size, int):
            return size
        return str(size) if size.op == "symbol" else f"{size.args[0]}+{size.args[1]}"

    def tensors(place: str) -> dict[str, TensorEntry]:
        return {
            n: TensorEntry(long[b.dtype], tuple(map(dim, b.shape)))
            for n, b in program.buffers.items()
            if b.place == place
        }

    source: Program = compiled.programs[program.phase]
    return ProgramEntry(FILE, tensors("input"), tensors("output"), source.notes["mla_form"], {})


def _require_room(config: ModelConfig, gpu: Target, recipes: Mapping[str, Recipe], dtype: str, positions: int) -> None:
    """ResourceError if the weights and the cache of one full sequence do not fit the GPU."""
    item = getattr(torch, dtype).itemsize
    weights = sum(math.prod(r.shape) * r.stored_dtype(getattr(torch, dtype)).itemsize for r in set(recipes.values()))
    cache = config.num_hidden_layers * config.cache_dim * positions * item
    if weights + cache <= gpu.memory:
        return
    fits = [t.name for t in GPUS.values() if weights + cache <= t.memory]
    remedy = f"it fits {', '.join(fits)}" if fits else "no single GPU of those known holds it"
    raise ResourceError(
        f"the model needs {weights / 1e9:.1f} GB of weights and {cache / 1e9:.1f} GB of cache for one sequence of "
        f"{positions} positions, {gpu.name} has {gpu.memory / 1e9:.0f} GB",
        f"{remedy}; --max-seq-len makes the cache smaller, --no-weights builds plan and kernels alone",
    )

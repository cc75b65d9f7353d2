"""The native GPU backend as a build sees it: a plan, one cubin a kernel, no GPU needed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from dsv2_compile.autotune import base
from dsv2_compile.backends.cuda import costs
from dsv2_compile.compiler import Compiled
from dsv2_compile.config import ModelConfig
from dsv2_compile.engine.manifest import ProgramEntry, TensorEntry
from dsv2_compile.errors import ResourceError, UsageError
from dsv2_compile.pipeline.artifact import Artifact
from dsv2_compile.pipeline.cuda_plan import plan_of, programs_of
from dsv2_compile.pipeline.cuda_proof import verify
from dsv2_compile.pipeline.cuda_records import files_of
from dsv2_compile.plan.dtypes import NAMES, SHORT
from dsv2_compile.plan.expr import Expr
from dsv2_compile.plan.plan import FILE, Plan
from dsv2_compile.plan.text import to_bytes
from dsv2_compile.program import Program
from dsv2_compile.progress import Progress
from dsv2_compile.request import BuildRequest
from dsv2_compile.targets import GPUS, Target, target
from dsv2_compile.weights import Recipe

DTYPES = ("bfloat16", "float16")
TOOLS = ("torch", "triton", "numpy", "safetensors")
MOST_SEQUENCES = 1024
"""Kernels look a row's sequence up among all at once."""
DECODE_FORMS = ("absorbed", "merged")

__all__ = ["make", "verify"]


def reads(request: BuildRequest) -> list[Path]:
    return files_of(request.tuning, _target(request))


def make(config: ModelConfig, request: BuildRequest, progress: Progress) -> Artifact:
    gpu, dtype = _target(request), request.dtype or "bfloat16"
    positions = request.max_seq_len or config.max_position_embeddings
    compiled = programs_of(
        config, gpu, positions, request.mla_form, progress, bisect=request.bisect, dump_ir=request.dump_ir
    )
    recipes = _recipes(compiled)
    if not request.no_weights:
        _require_room(config, gpu, recipes, dtype, positions)
    known = base.load(files_of(request.tuning, gpu))
    planned = plan_of(compiled, gpu, SHORT[dtype], request.max_batch_size, positions, progress, known)
    report = (json.dumps(planned.report, indent=1) + "\n").encode()
    files = {FILE: to_bytes(planned.plan), **planned.images, costs.FILE: report}
    return Artifact(
        backend="cuda",
        target=gpu.name,
        dtype=getattr(torch, dtype),
        compiled=compiled,
        recipes={} if request.no_weights else recipes,
        entries={name: _entry(planned.plan, name, compiled) for name in planned.plan.programs},
        files=lambda placement: files,
        tools=TOOLS,
        nbytes=sum(map(len, files.values())),
        warnings=planned.warnings,
        tuning=tuple(planned.tuning),
    )


def _target(request: BuildRequest) -> Target:
    gpu = target(request.gpu or "")
    possible = [n for n in DTYPES if SHORT[n] in gpu.architecture.dtypes]
    if (request.dtype or "bfloat16") not in possible:
        raise UsageError(f"{gpu.name} does not compute in {request.dtype}", f"use --dtype {' or '.join(possible)}")
    if request.max_batch_size > MOST_SEQUENCES:
        raise UsageError(
            f"--max-batch-size {request.max_batch_size} is more than a GPU engine takes",
            f"give 1 to {MOST_SEQUENCES} sequences",
        )
    for phase, form in request.mla_form.items():
        allowed = DECODE_FORMS if phase == "decode" else ("expanded",)
        if form not in allowed:
            raise UsageError(
                f"--mla-form {phase}={form} is not one that GPU engines have",
                f"{phase} may be {' or '.join(allowed)}; long prefixes are always read absorbed",
            )
    return gpu


def _recipes(compiled: Compiled) -> dict[str, Recipe]:
    found: dict[str, Recipe] = {}
    for program in compiled.programs.values():
        read = {str(n.target) for n in program.graph.nodes if n.op == "get_attr"}
        found |= {name: program.weights[name] for name in read}
    return dict(sorted(found.items()))


def _entry(plan: Plan, name: str, compiled: Compiled) -> ProgramEntry:
    program = plan.programs[name]

    def dim(size: int | Expr) -> int | str:
        if isinstance(size, int):
            return size
        return str(size) if size.op == "symbol" else f"{size.args[0]}+{size.args[1]}"

    def tensors(place: str) -> dict[str, TensorEntry]:
        return {
            n: TensorEntry(NAMES[b.dtype], tuple(map(dim, b.shape)))
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

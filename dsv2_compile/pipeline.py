"""``build``: checkpoint -> programs -> passes -> ONNX Runtime engine -> numeric proof -> published directory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dsv2_compile import __version__
from dsv2_compile.backends.onnxruntime import Lowered, lower, place
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.compiler import Compiled, CompileOptions, compile_model
from dsv2_compile.costs import program_report
from dsv2_compile.engine.manifest import Manifest, ProgramEntry, SourceEntry, TensorEntry
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.errors import UsageError
from dsv2_compile.estimate import Estimate, estimate, require_memory
from dsv2_compile.passes.absorb import WORKLOADS, check_forms
from dsv2_compile.program import Program, TensorSpec
from dsv2_compile.progress import Progress, silent
from dsv2_compile.request import BuildRequest
from dsv2_compile.targets import target
from dsv2_compile.verify import Report, make_golden, verify_engine
from dsv2_compile.weights import Recipe

DTYPE = torch.float32
TOOLS = ("torch", "onnx", "onnxruntime", "numpy", "safetensors")
REJECTED = ".unverified"
"""Ending of the directory that keeps an engine whose numeric check failed."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did. ``verification`` is None where the check was not asked for.

    Unless it passed, ``engine`` lies beside the requested output, with the ending ``.unverified``.
    """

    engine: Path
    manifest: Manifest
    seconds: float
    verification: Report | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do. ``programs``: the cost report by phase; ``passes``: the records of the passes."""

    estimate: Estimate
    programs: dict[str, Any]
    passes: list[dict[str, Any]]
    warnings: tuple[str, ...]


def build(request: BuildRequest, progress: Progress = silent) -> BuildReport:
    """Build the engine that ``request`` describes.

    Raises ModelError, UsageError, ResourceError, IncompatibleError, and NumericError if a pass breaks its
    claim. An engine that is not what the eager model computes is not raised: see `BuildReport.verification`.
    """
    start = time.monotonic()
    checkpoint = _open(request, progress)
    positions = request.max_seq_len or checkpoint.config.max_position_embeddings
    fingerprint = _fingerprint(checkpoint, request)
    with EngineWriter(request.output, request.force, inputs=[checkpoint.path], fingerprint=fingerprint) as writer:
        compiled, lowered = _compile(checkpoint, request, progress)
        recipes = _union(lowered)
        require_memory(estimate(checkpoint, recipes, lowered, DTYPE))
        warnings = (*checkpoint.notes, *_nonfinite(checkpoint, request, progress))
        for path in checkpoint.aux_files:
            writer.add_file(path.name, path)
        placement = writer.write_weights(
            recipes, checkpoint, DTYPE, progress=lambda done, total: progress("weights, bytes", done, total)
        )
        for phase, part in lowered.items():
            writer.add_bytes(f"{phase}.onnx", place(part.model, placement).SerializeToString(deterministic=True))
        writer.add_bytes("programs.json", _json(_reports(compiled)))
        manifest = _manifest(request, checkpoint, compiled, lowered, positions)
        report = None
        if not request.no_verify:
            report = _verify(writer, manifest, checkpoint, progress)
            status = "verified" if report.passed else "unverified"
            manifest = replace(manifest, status=status, numerics=report.summary())
        passed = report is None or report.passed
        manifest = writer.finish(manifest, "" if passed else REJECTED)
        return BuildReport(writer.out, manifest, time.monotonic() - start, report, warnings)


def plan(request: BuildRequest, progress: Progress = silent) -> BuildPlan:
    """What `build` would write and need, without writing anything."""
    checkpoint = _open(request, progress)
    compiled, lowered = _compile(checkpoint, request, progress)
    return BuildPlan(
        estimate(checkpoint, _union(lowered), lowered, DTYPE),
        _reports(compiled),
        [r.to_json() for r in compiled.records],
        checkpoint.notes,
    )


def _open(request: BuildRequest, progress: Progress) -> Checkpoint:
    check_forms(dict(request.mla_form))
    checkpoint = Checkpoint.open(request.model, revision=request.revision, strict=request.strict, progress=progress)
    limit = checkpoint.config.max_position_embeddings
    if not 1 <= (request.max_seq_len or limit) <= limit:
        raise UsageError(
            f"--max-seq-len {request.max_seq_len} is outside what the model was made for",
            f"give 1 to {limit} positions",
        )
    return checkpoint


def _compile(checkpoint: Checkpoint, request: BuildRequest, progress: Progress) -> tuple[Compiled, dict[str, Lowered]]:
    config = checkpoint.config
    options = CompileOptions(
        target("cpu"),
        request.max_seq_len or config.max_position_embeddings,
        request.mla_form,
        bisect=request.bisect,
        dump=request.dump_ir,
    )
    compiled = compile_model(config, options, lambda text: progress(text, 0, 0))
    return compiled, {phase: lower(program, request.portable) for phase, program in compiled.programs.items()}


def _nonfinite(checkpoint: Checkpoint, request: BuildRequest, progress: Progress) -> list[str]:
    """With --strict the checkpoint was refused when it was opened."""
    found = {} if request.strict else checkpoint.nonfinite(progress)
    return [f"{name} holds {nan} NaN and {inf} infinite values" for name, (nan, inf) in found.items()]


def _union(lowered: dict[str, Lowered]) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for part in lowered.values():
        for name, recipe in part.weights.items():
            if recipes.setdefault(name, recipe) != recipe:
                raise AssertionError(f"two programs give weight {name} different recipes")
    return dict(sorted(recipes.items()))


def _reports(compiled: Compiled) -> dict[str, Any]:
    return {p: program_report(program, asdict(WORKLOADS[p])) for p, program in compiled.programs.items()}


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def _fingerprint(checkpoint: Checkpoint, request: BuildRequest) -> str:
    """Names what the weight files hold: the checkpoint's files as they lie there, and how they are written."""
    h = hashlib.sha256(json.dumps(checkpoint.config.to_json(), sort_keys=True).encode())
    for path in sorted(checkpoint.path.iterdir()):
        if path.is_file():
            stat = path.stat()
            h.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    how = (__version__, DTYPE, request.max_seq_len, sorted(request.mla_form.items()), request.portable)
    h.update(repr(how).encode())
    return h.hexdigest()


def _manifest(
    request: BuildRequest, checkpoint: Checkpoint, compiled: Compiled, lowered: dict[str, Lowered], positions: int
) -> Manifest:
    symbols: dict[str, tuple[int, int]] = {}
    for program in compiled.programs.values():
        for name, (low, high) in program.symbols.items():
            known = symbols.get(name, (low, high))
            symbols[name] = (min(low, known[0]), max(high, known[1]))
    return Manifest(
        status="unverified",
        backend="onnxruntime",
        target="cpu",
        model=checkpoint.config,
        dtype=str(DTYPE).removeprefix("torch."),
        symbols=symbols,
        programs={p: _entry(program, lowered[p]) for p, program in compiled.programs.items()},
        passes=tuple(r.to_json() for r in compiled.records),
        toolchain={"dsv2-compile": __version__, **{t: importlib.metadata.version(t) for t in TOOLS}},
        numerics={},
        weights={},
        files={},
        max_batch_size=request.max_batch_size,
        max_seq_len=positions,
        source=SourceEntry(checkpoint.name, checkpoint.revision, None),
    )


def _entry(program: Program, part: Lowered) -> ProgramEntry:
    def tensor(spec: TensorSpec) -> TensorEntry:
        dims = tuple(d if isinstance(d, int) else str(d) for d in spec.shape)
        return TensorEntry(str(spec.dtype).removeprefix("torch."), dims)

    layer = program.outputs["rows.0"]
    rows = TensorSpec((program.config.num_hidden_layers, *layer.shape), layer.dtype)
    return ProgramEntry(
        f"{program.phase}.onnx",
        {name: tensor(spec) for name, spec in program.inputs.items()},
        {"logits": tensor(program.outputs["logits"]), "rows": tensor(rows)},
        program.notes["mla_form"],
        part.session_options,
    )


def _verify(writer: EngineWriter, manifest: Manifest, checkpoint: Checkpoint, progress: Progress) -> Report:
    """Golden data from the eager model, then the staged engine against them, as a user would load it."""
    golden = make_golden(
        manifest.model, checkpoint, manifest.dtype, manifest.max_batch_size, manifest.max_seq_len, progress=progress
    )
    golden.write(writer)
    writer.seal(manifest)
    return verify_engine(writer.stage, progress=progress)

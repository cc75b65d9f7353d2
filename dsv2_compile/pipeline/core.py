"""``build``: checkpoint -> programs -> passes -> a backend's engine -> numeric proof -> published directory."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from dsv2_compile import __version__
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.compiler import Compiled
from dsv2_compile.costs import program_report
from dsv2_compile.engine.manifest import Manifest, SourceEntry
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.errors import UsageError
from dsv2_compile.estimate import Estimate, estimate, require_memory
from dsv2_compile.passes.absorb import WORKLOADS, check_forms
from dsv2_compile.pipeline import unchanged
from dsv2_compile.pipeline.artifact import Artifact, Backend
from dsv2_compile.progress import Progress, silent
from dsv2_compile.request import BuildRequest
from dsv2_compile.verify import Report

REJECTED = ".unverified"
"""Ending of the directory that keeps an engine whose numeric check failed."""
UNCHANGED = "nothing has changed: the engine that is there is what this build makes"


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
    backend = _backend(request)
    checkpoint = _open(request, progress)
    inputs = unchanged.fingerprint(checkpoint, request, backend.reads(request))
    if request.force and (there := unchanged.find(inputs, request.output)):
        return BuildReport(request.output, there, time.monotonic() - start, None, (UNCHANGED,))
    fingerprint = _fingerprint(checkpoint, request)
    with EngineWriter(request.output, request.force, inputs=[checkpoint.path], fingerprint=fingerprint) as writer:
        made = backend.make(checkpoint.config, request, progress)
        if made.recipes:
            require_memory(estimate(checkpoint, made.recipes, made.nbytes, made.dtype))
        warnings = (*checkpoint.notes, *made.warnings, *_nonfinite(checkpoint, request, progress))
        for path in checkpoint.aux_files:
            writer.add_file(path.name, path)
        placement = writer.write_weights(
            made.recipes, checkpoint, made.dtype, progress=lambda done, total: progress("weights, bytes", done, total)
        )
        for name, data in made.files(placement).items():
            writer.add_bytes(name, data)
        writer.add_bytes("programs.json", _json(_reports(made.compiled)))
        manifest = _manifest(request, checkpoint, made)
        report = None
        if not request.no_verify:
            report = backend.verify(writer, manifest, checkpoint, request, progress)
            status = "verified" if report.passed and report.of_engine else "unverified"
            manifest = replace(manifest, status=status, numerics=report.summary())
        passed = report is None or report.passed
        manifest = writer.finish(manifest, "" if passed else REJECTED)
        unchanged.note(inputs, writer.out)
        return BuildReport(writer.out, manifest, time.monotonic() - start, report, warnings)


def plan(request: BuildRequest, progress: Progress = silent) -> BuildPlan:
    """What `build` would write and need, without writing anything."""
    checkpoint = _open(request, progress)
    made = _backend(request).make(checkpoint.config, request, progress)
    return BuildPlan(
        estimate(checkpoint, made.recipes, made.nbytes, made.dtype),
        _reports(made.compiled),
        [r.to_json() for r in made.compiled.records],
        (*checkpoint.notes, *made.warnings),
    )


def _backend(request: BuildRequest) -> Backend:
    return cast(Backend, importlib.import_module(f"dsv2_compile.pipeline.{request.backend}"))


def _open(request: BuildRequest, progress: Progress) -> Checkpoint:
    check_forms(dict(request.mla_form))
    if request.no_weights:
        checkpoint = Checkpoint.settings(request.model, request.revision, progress)
    else:
        checkpoint = Checkpoint.open(request.model, request.revision, request.strict, progress)
    limit = checkpoint.config.max_position_embeddings
    if not 1 <= (request.max_seq_len or limit) <= limit:
        raise UsageError(
            f"--max-seq-len {request.max_seq_len} is outside what the model was made for",
            f"give 1 to {limit} positions",
        )
    return checkpoint


def _nonfinite(checkpoint: Checkpoint, request: BuildRequest, progress: Progress) -> list[str]:
    """With --strict the checkpoint was refused when it was opened."""
    found = {} if request.strict else checkpoint.nonfinite(progress)
    return [f"{name} holds {nan} NaN and {inf} infinite values" for name, (nan, inf) in found.items()]


def _reports(compiled: Compiled) -> dict[str, Any]:
    return {p: program_report(program, asdict(WORKLOADS[program.phase])) for p, program in compiled.programs.items()}


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def _fingerprint(checkpoint: Checkpoint, request: BuildRequest) -> str:
    """Names what the weight files hold: the checkpoint's files as they lie there, and how they are written."""
    h = hashlib.sha256(unchanged.state(checkpoint))
    how = (__version__, request.backend, request.dtype, request.max_seq_len, sorted(request.mla_form.items()))
    h.update(repr((how, request.portable)).encode())
    return h.hexdigest()


def _manifest(request: BuildRequest, checkpoint: Checkpoint, made: Artifact) -> Manifest:
    symbols: dict[str, tuple[int, int]] = {}
    for program in made.compiled.programs.values():
        for name, (low, high) in program.symbols.items():
            known = symbols.get(name, (low, high))
            symbols[name] = (min(low, known[0]), max(high, known[1]))
    return Manifest(
        status="unverified",
        backend=made.backend,
        target=made.target,
        model=checkpoint.config,
        dtype=str(made.dtype).removeprefix("torch."),
        symbols=symbols,
        programs=made.entries,
        passes=tuple(r.to_json() for r in made.compiled.records),
        toolchain={"dsv2-compile": __version__, **{t: importlib.metadata.version(t) for t in made.tools}},
        tuning=made.tuning,
        numerics={},
        weights={},
        files={},
        max_batch_size=request.max_batch_size,
        max_seq_len=request.max_seq_len or checkpoint.config.max_position_embeddings,
        source=SourceEntry(checkpoint.name, checkpoint.revision, None),
    )

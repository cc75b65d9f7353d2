"""``build``: checkpoint -> programs -> passes -> ONNX Runtime engine -> numeric proof -> published directory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dsv2_compile import __version__
from dsv2_compile.backends.onnxruntime import Lowered, lower, place
from dsv2_compile.checkpoint.reader import Checkpoint
from dsv2_compile.compiler import Compiled, CompileOptions, compile_model
from dsv2_compile.config import ModelConfig
from dsv2_compile.costs import program_report
from dsv2_compile.engine.manifest import Manifest, ProgramEntry, SourceEntry, TensorEntry
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.errors import NumericError, UsageError
from dsv2_compile.passes.absorb import WORKLOADS, check_forms
from dsv2_compile.program import Program, TensorSpec
from dsv2_compile.request import BuildRequest
from dsv2_compile.targets import target
from dsv2_compile.weights import Recipe

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``; total 0 where it is not known."""
DTYPE = torch.float32
TOOLS = ("torch", "onnx", "onnxruntime", "numpy", "safetensors")


@dataclass(frozen=True)
class BuildReport:
    """What a build did. ``verification`` is the report of verify, None with --no-verify."""

    engine: Path
    status: str
    manifest: Manifest
    seconds: float
    verification: Any


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do: sizes in bytes, time in seconds."""

    weights_bytes: int
    disk_bytes: int
    peak_memory_bytes: int
    seconds: float
    programs: dict[str, Any]
    passes: list[dict[str, Any]]


def build(request: BuildRequest, progress: Progress = lambda what, done, total: None) -> BuildReport:
    """Build the engine that ``request`` describes.

    Raises ModelError, UsageError, NumericError (the engine is then not published; with
    ``--no-verify`` it is, marked unverified), ResourceError, IncompatibleError.
    """
    start = time.monotonic()
    checkpoint, compiled, lowered = _prepare(request, progress)
    config = checkpoint.config
    recipes = _union(lowered)
    fingerprint = _fingerprint(checkpoint, request)
    with EngineWriter(request.output, request.force, inputs=[checkpoint.path], fingerprint=fingerprint) as writer:
        for path in checkpoint.aux_files:
            writer.add_file(path.name, path)
        placement = writer.write_weights(
            recipes, checkpoint, DTYPE, progress=lambda done, total: progress("weights, bytes", done, total)
        )
        for phase, part in lowered.items():
            writer.add_bytes(f"{phase}.onnx", place(part.model, placement).SerializeToString(deterministic=True))
        writer.add_bytes("programs.json", _json(_reports(compiled)))
        manifest = _manifest(request, checkpoint, compiled, lowered)
        verification = None
        if not request.no_verify:
            verification = _verify(writer, manifest, checkpoint, progress)
            if not verification.passed:
                raise _rejected(verification, request.output)
            manifest = replace(manifest, status="verified", numerics=verification.numerics())
        manifest = writer.finish(manifest)
    return BuildReport(Path(request.output), manifest.status, manifest, time.monotonic() - start, verification)


def plan(request: BuildRequest, progress: Progress = lambda what, done, total: None) -> BuildPlan:
    """What ``build`` would write and need, without writing anything."""
    checkpoint, compiled, lowered = _prepare(request, progress)
    sizes = {name: _nbytes(r.shape) for name, r in _unique(_union(lowered)).items()}
    weights = sum(sizes.values())
    largest = max(sizes.values())
    models = sum(part.model.ByteSize() for part in lowered.values())
    return BuildPlan(
        weights,
        weights + models + _golden_bytes(checkpoint.config),
        _BASE_MEMORY + 3 * _largest_piece(_union(lowered)),
        _BASE_SECONDS + weights / _WRITE_RATE,
        _reports(compiled) | {"largest_weight_bytes": largest},
        [r.to_json() for r in compiled.records],
    )


_BASE_MEMORY = 700 << 20
"""Python, torch and ONNX Runtime with the graphs, bytes (artifacts/bench/build.json)."""
_BASE_SECONDS = 25.0
_WRITE_RATE = 120e6
"""Bytes of weights per second, read, converted, hashed and synced, and checked (artifacts/bench/build.json)."""


def _prepare(request: BuildRequest, progress: Progress) -> tuple[Checkpoint, Compiled, dict[str, Lowered]]:
    check_forms(request.mla_form)
    progress("checkpoint", 0, 0)
    checkpoint = Checkpoint.open(request.model, revision=request.revision, strict=request.strict)
    config = checkpoint.config
    limit = request.max_seq_len or config.max_position_embeddings
    if not 1 <= limit <= config.max_position_embeddings:
        raise UsageError(
            f"--max-seq-len {limit} is outside what the model was made for",
            f"give 1 to {config.max_position_embeddings} positions",
        )
    options = CompileOptions(
        target("cpu"), limit, request.mla_form, bisect=request.bisect, dump=Path(request.dump_ir) if request.dump_ir else None
    )
    compiled = compile_model(config, options, lambda text: progress(text, 0, 0))
    lowered = {phase: lower(program, request.portable) for phase, program in compiled.programs.items()}
    return checkpoint, compiled, lowered


def _union(lowered: dict[str, Lowered]) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for part in lowered.values():
        for name, recipe in part.weights.items():
            if recipes.setdefault(name, recipe) != recipe:
                raise AssertionError(f"two programs give weight {name} different recipes")
    return dict(sorted(recipes.items()))


def _unique(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    first: dict[Recipe, str] = {}
    for name, recipe in recipes.items():
        first.setdefault(recipe, name)
    return {name: recipe for recipe, name in first.items()}


def _nbytes(shape: tuple[int, ...]) -> int:
    return DTYPE.itemsize * int(torch.Size(shape).numel())


def _largest_piece(recipes: dict[str, Recipe]) -> int:
    """Bytes of the largest block the writer holds: a part of a stack, or a whole tensor."""

    def block(r: Recipe) -> int:
        parts = getattr(r, "parts", None)
        return max(map(block, parts)) if parts and getattr(r, "dim", 0) == 0 else _nbytes(r.shape)

    return max(map(block, recipes.values()))


def _golden_bytes(config: ModelConfig) -> int:
    return 64 * 8 * (config.vocab_size + config.num_hidden_layers * config.cache_dim)


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
    h.update(f"{__version__} {DTYPE} {request.max_seq_len} {sorted(request.mla_form.items())} {request.portable}".encode())
    return h.hexdigest()


def _manifest(
    request: BuildRequest, checkpoint: Checkpoint, compiled: Compiled, lowered: dict[str, Lowered]
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
        dtype="float32",
        symbols=symbols,
        programs={p: _entry(program, lowered[p]) for p, program in compiled.programs.items()},
        passes=tuple(r.to_json() for r in compiled.records),
        toolchain={"dsv2-compile": __version__, **{t: importlib.metadata.version(t) for t in TOOLS}},
        numerics={},
        weights={},
        files={},
        max_batch_size=request.max_batch_size,
        max_seq_len=request.max_seq_len or checkpoint.config.max_position_embeddings,
        source=SourceEntry(checkpoint.path.name, checkpoint.revision, None),
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


def _verify(writer: EngineWriter, manifest: Manifest, checkpoint: Checkpoint, progress: Progress) -> Any:
    """Golden data from the eager model, then the staged engine against them."""
    from dsv2_compile.verify import verify_engine
    from dsv2_compile.verify.golden import write_golden

    write_golden(writer, checkpoint, manifest, progress)
    writer.seal(manifest)
    return verify_engine(writer.stage, progress=progress)


def _rejected(verification: Any, output: Path) -> NumericError:
    return NumericError(
        f"the engine does not compute what the eager model computes: {verification.summary()}",
        f"nothing was written to {output}; --bisect checks the passes, --no-verify keeps an unverified engine",
    )

"""``inspect``: what an engine is, from its manifest and cost report alone. No weights are read, no torch is needed."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsv2_compile.cli import inspect_native, inspect_text
from dsv2_compile.cli.command import Command, Result, engine_argument
from dsv2_compile.cli.output import Console
from dsv2_compile.config import ModelConfig
from dsv2_compile.engine import integrity, strictjson
from dsv2_compile.engine.manifest import Manifest
from dsv2_compile.engine.placement import ITEM_BYTES
from dsv2_compile.errors import COPY_AGAIN, IntegrityError, UsageError
from dsv2_compile.kvcache import DEEPSEEK_67B_BYTES_PER_TOKEN, kv_bytes_per_token

REPORT = "programs.json"
MAX_REPORT_BYTES = 8 << 20
_COUNT = {"type": "integer", "minimum": 0}
_REPORT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "additionalProperties": False,
        "required": ["sizes", "operators"],
        "properties": {
            "sizes": {"type": "object", "additionalProperties": _COUNT},
            "operators": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["op", "calls", "bytes", "flops"],
                    "properties": {"op": {"type": "string"}, "calls": _COUNT, "bytes": _COUNT, "flops": _COUNT},
                },
            },
        },
    },
}
"""Of programs.json: by phase the sizes it is costed at and the operators, dearest first."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    engine_argument(parser)
    parser.add_argument("--program", metavar="PHASE", help="only this program: prefill, decode, ...")
    parser.add_argument("--passes", action="store_true", help="only the passes: matches, claims, errors")
    parser.add_argument("--ops", action="store_true", help="only the operators: calls, bytes, FLOP")
    parser.add_argument(
        "--launches", action="store_true", help="only the launches and kernels of a GPU engine, with their bounds"
    )


def _run(args: argparse.Namespace, console: Console) -> Result:
    manifest = integrity.read_manifest(args.engine)
    phases = [args.program] if args.program else sorted(manifest.programs)
    if unknown := set(phases) - set(manifest.programs):
        raise UsageError(
            f"The engine has no program {unknown.pop()!r}.", f"It has {', '.join(sorted(manifest.programs))}."
        )
    damage = _size_problems(args.engine, manifest)
    broken = {p.partition(":")[0] for p in damage}
    report = None if inspect_native.FILE in broken else inspect_native.read(args.engine, manifest)
    if args.launches:
        return _launches(args.engine, manifest, phases, report, console)
    costs = inspect_native.costs(report) if report else {} if REPORT in broken else _costs(args.engine, manifest)
    passes = [p for p in manifest.passes if not args.program or p.get("phase", args.program) == args.program]
    data: dict[str, Any] = {"engine": str(args.engine), "hashes_checked": False}
    if not (args.passes or args.ops):
        data |= _summary(args.engine, manifest)
    if args.ops or not args.passes:
        data["programs"] = {p: _program(p, manifest, passes, costs.get(p)) for p in phases}
    if args.passes or not args.ops:
        data["passes"] = passes
    console.data(inspect_text.text(data, only_ops=args.ops))
    if damage:
        return Result(data, IntegrityError(f"{args.engine} is not the engine that was built.", COPY_AGAIN, damage))
    return Result(data)


def _launches(
    root: Path, manifest: Manifest, programs: list[str], report: dict[str, Any] | None, console: Console
) -> Result:
    if report is None:
        raise UsageError(f"{root} has no launches: it is not a GPU engine, or damaged.", "Leave --launches out.")
    shown = {p: report["programs"][p] for p in programs}
    console.data(inspect_native.text(manifest.target, shown, report["kernels"]))
    return Result({"engine": str(root), "hashes_checked": False, "launches": shown, "kernels": report["kernels"]})


def _size_problems(root: Path, manifest: Manifest) -> list[str]:
    """What the names and sizes of the files show; costs no reading."""
    present = {path: (size, problem) for path, size, problem in integrity.listing(root)}
    found = [f"{path}: {problem}" for path, (_, problem) in present.items() if problem]
    for path, entry in manifest.files.items():
        if path not in present:
            found.append(f"{path}: missing")
        elif present[path][0] != entry.bytes:
            found.append(f"{path}: {present[path][0]} bytes, expected {entry.bytes}")
    return found


def _costs(root: Path, manifest: Manifest) -> dict[str, Any]:
    """The cost report by phase; empty if the engine has none."""
    entry = manifest.files.get(REPORT)
    if entry is None:
        return {}
    if entry.bytes > MAX_REPORT_BYTES or integrity.file_entry(root / REPORT) != entry:
        problem = "it is not the file that was built"
    else:
        try:
            report = strictjson.loads((root / REPORT).read_bytes(), MAX_REPORT_BYTES)
            problem = next(strictjson.problems(report, _REPORT_SCHEMA, {}), "")
        except strictjson.JsonError as e:
            problem = str(e)
    if problem:
        raise IntegrityError(f"{REPORT}: {problem}.", "Rebuild the engine with dsv2-compile build.")
    out: dict[str, Any] = report
    return out


def _summary(root: Path, m: Manifest) -> dict[str, Any]:
    stored = {(w.file, w.offset): w for w in m.weights.values()}
    return {
        "engine_status": m.status,
        "backend": m.backend,
        "target": m.target,
        "dtype": m.dtype,
        "max_batch_size": m.max_batch_size,
        "max_seq_len": m.max_seq_len,
        "model": m.model.to_json(),
        "source": asdict(m.source),
        "toolchain": dict(m.toolchain),
        "weights": {
            "names": len(m.weights),
            "tensors": len(stored),
            "bytes": sum(w.nbytes for w in stored.values()),
            "files": len({w.file for w in stored.values()}),
        },
        "files": {"count": len(m.files) + 1, "bytes": sum(f.bytes for f in m.files.values())},
        "kv_cache": _kv_cache(m.model, m.dtype),
        "numerics": m.numerics,
    }


def _kv_cache(model: ModelConfig, dtype: str) -> dict[str, Any]:
    """Bytes per token as the engine keeps them, and at the 16 bits and 6 bits of the published comparison."""

    def at(bits: int) -> dict[str, Any]:
        nbytes = kv_bytes_per_token(model, bits)
        return {"bits": bits, "bytes_per_token": nbytes, "of_deepseek_67b": nbytes / DEEPSEEK_67B_BYTES_PER_TOKEN}

    return {
        "layers": model.num_hidden_layers,
        "values_per_layer": model.cache_dim,
        "engine": at(8 * ITEM_BYTES[dtype]),
        "at_16_bit": at(16),
        "at_6_bit": at(6),
        "deepseek_67b_bytes_per_token": DEEPSEEK_67B_BYTES_PER_TOKEN,
    }


def _program(phase: str, m: Manifest, passes: list[dict[str, Any]], costs: dict[str, Any] | None) -> dict[str, Any]:
    chosen = [p for p in passes if p.get("name") == "absorb" and p.get("phase") == phase.partition("-")[0]]
    operators = costs["operators"] if costs else []
    return {
        "file": m.programs[phase].file,
        "mla_form": m.programs[phase].mla_form,
        "mla_reason": str(chosen[0].get("reason", "")) if chosen else "",
        "sizes": costs["sizes"] if costs else None,
        "bytes": sum(o["bytes"] for o in operators) if costs else None,
        "flops": sum(o["flops"] for o in operators) if costs else None,
        "operators": operators,
    }


COMMAND = Command("inspect", "Show what an engine is, without loading it.", _arguments, _run)

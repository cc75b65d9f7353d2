"""A small engine as bad disks and hostile builders would leave it.

What is edited here is sealed and hashed again where the edit would be found by a hash, so that it reaches what is
behind the hashes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dsv2_compile.engine import manifest as manifests
from dsv2_compile.engine.manifest import FILE_NAME, FileEntry, ProgramEntry
from dsv2_compile.engine.placement import Placement
from dsv2_compile.plan import text
from dsv2_compile.plan.plan import FILE as PLAN
from tests import native_plans, toy_engine
from tests.mutations import edit_bytes, edit_tokens, edit_value

Files = dict[str, bytes]
"""An engine: its files by path, the manifest among them."""


def engine() -> Files:
    """Loads but for its kernels, which are none."""
    toy = native_plans.toy()
    plan = dataclasses.replace(toy, programs={n: toy.programs[n] for n in ("prefill", "decode-deep")})
    files = {k.cubin: k.symbol.encode() for k in plan.kernels}
    files |= {PLAN: text.to_bytes(plan), "weights/1.bin": b"w" * (64 + 480 + 160), "config.json": b"{}\n"}
    entries = {p: FileEntry(hashlib.sha256(d).hexdigest(), len(d)) for p, d in files.items()}
    weights = {
        "embed": Placement("weights/1.bin", 64, 480, "bfloat16", (30, 8)),
        "head": Placement("weights/1.bin", 544, 160, "bfloat16", (10, 8)),
        "none": Placement("weights/1.bin", 704, 0, "float32", (0, 3)),
    }
    example = toy_engine.manifest()
    program = example.programs["decode"]
    programs = {"decode": ProgramEntry(PLAN, program.inputs, program.outputs, "absorbed", {"a": "1"})}
    made = dataclasses.replace(
        example, backend="cuda", target="h800", files=entries, weights=weights, programs=programs
    )
    return {**files, FILE_NAME: made.to_bytes()}


def sealed(body: bytes) -> bytes:
    return manifests.seal(body.rstrip().removesuffix(b"}").rstrip())


def with_manifest(files: Files, value: Any) -> Files:
    return {**files, FILE_NAME: sealed(json.dumps(value).encode())}


def value_of(files: Files) -> dict[str, Any]:
    """The manifest as JSON, without its seal."""
    return {k: v for k, v in json.loads(files[FILE_NAME]).items() if k != "sha256"}


def with_plan(files: Files, plan: bytes) -> Files:
    value = value_of(files)
    value["files"][PLAN] = {"sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)}
    return with_manifest({**files, PLAN: plan}, value)


def write(root: Path, files: Files) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def _disk(files: Files, rng: random.Random) -> Files:
    path = rng.choice(sorted(files))
    return {**files, path: edit_bytes(files[path], rng)}


def _manifest_bytes(files: Files, rng: random.Random) -> Files:
    return {**files, FILE_NAME: sealed(edit_bytes(json.dumps(value_of(files)).encode(), rng))}


def _manifest_tokens(files: Files, rng: random.Random) -> Files:
    return {**files, FILE_NAME: sealed(edit_tokens(json.dumps(value_of(files)).encode(), rng))}


def _manifest_value(files: Files, rng: random.Random) -> Files:
    return with_manifest(files, edit_value(value_of(files), rng))


def _plan_bytes(files: Files, rng: random.Random) -> Files:
    return with_plan(files, edit_bytes(files[PLAN], rng))


def _plan_tokens(files: Files, rng: random.Random) -> Files:
    return with_plan(files, edit_tokens(files[PLAN], rng))


def _plan_value(files: Files, rng: random.Random) -> Files:
    return with_plan(files, json.dumps(edit_value(json.loads(files[PLAN]), rng)).encode())


ENGINE_EDITS: dict[str, Callable[[Files, random.Random], Files]] = {
    "disk": _disk,
    "manifest bytes": _manifest_bytes,
    "manifest tokens": _manifest_tokens,
    "manifest value": _manifest_value,
    "plan bytes": _plan_bytes,
    "plan tokens": _plan_tokens,
    "plan value": _plan_value,
}


def engines(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path]]:
    """``count`` edited engines, each with what was edited. The edits take turns."""
    rng, whole = random.Random(seed), engine()
    kinds = list(ENGINE_EDITS)
    for i in range(count):
        kind = kinds[i % len(kinds)]
        files = ENGINE_EDITS[kind](whole, rng)
        yield kind, write(folder / str(i), files)

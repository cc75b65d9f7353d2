"""manifest.json: what an engine is, and the hash of every file in it.

The published schema is ``manifest.schema.json``; this module parses by it, strictly, and checks
what a schema cannot say. The file seals itself: its last key is the SHA-256 of all bytes before
it, so a changed byte of the manifest is found as surely as one of any other file.
No timestamps and no host paths: the same build gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dsv2_compile.config import ModelConfig
from dsv2_compile.engine import strictjson
from dsv2_compile.engine.placement import Placement
from dsv2_compile.errors import COPY_AGAIN, IncompatibleError, IntegrityError

SCHEMA = "dsv2/engine/1"
FILE_NAME = "manifest.json"
MAX_BYTES = 8 << 20
_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n\}\n')
_SEAL_BYTES = len(b',\n "sha256": ""\n}\n') + 64


@dataclass(frozen=True)
class TensorEntry:
    """One input or output of a program; dims are ints or names of symbols."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ProgramEntry:
    """One phase. ``session_options`` are string options for the backend's loader."""

    file: str
    inputs: dict[str, TensorEntry]
    outputs: dict[str, TensorEntry]
    mla_form: str
    session_options: dict[str, str]


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class SourceEntry:
    """The checkpoint: hub id or directory name (never a path), revision, hash over its tensors."""

    name: str
    revision: str | None
    weights_sha256: str | None


@dataclass(frozen=True)
class Manifest:
    status: str
    backend: str
    target: str
    model: ModelConfig
    dtype: str
    symbols: dict[str, tuple[int, int]]
    programs: dict[str, ProgramEntry]
    passes: tuple[dict[str, Any], ...]
    toolchain: dict[str, str]
    tuning: tuple[dict[str, Any], ...]
    numerics: dict[str, Any]
    weights: dict[str, Placement]
    files: dict[str, FileEntry]
    max_batch_size: int
    max_seq_len: int
    source: SourceEntry

    def to_bytes(self) -> bytes:
        """The file, sealed. Raises IntegrityError if `parse` would refuse it: none such is ever written."""
        body = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, sort_keys=True, allow_nan=False)
        data = seal(body.removesuffix("\n}").encode())
        parse(data)
        return data


def seal(body: bytes) -> bytes:
    """``body`` is the JSON text without its closing newline and brace."""
    return body + b',\n "sha256": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


@cache
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("manifest.schema.json").read_text())
    return loaded


def parse(data: bytes) -> Manifest:
    """The manifest. IntegrityError if damaged or malformed, IncompatibleError if of another version."""
    if len(data) > MAX_BYTES:
        raise IntegrityError(f"{FILE_NAME} has {len(data)} bytes, the limit is {MAX_BYTES}.", COPY_AGAIN)
    body, tail = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    match = _SEAL.fullmatch(tail)
    if match is None or match[1].decode() != hashlib.sha256(body).hexdigest():
        raise IntegrityError(f"{FILE_NAME} is damaged: its own SHA-256 does not match.", COPY_AGAIN)
    try:
        raw = strictjson.loads(data, MAX_BYTES)
    except strictjson.JsonError as e:
        raise IntegrityError(f"{FILE_NAME}: {e}.", COPY_AGAIN) from None
    version = raw.get("schema") if isinstance(raw, dict) else None
    if version != SCHEMA and isinstance(version, str) and version.startswith("dsv2/engine/"):
        raise IncompatibleError(
            f"The engine has manifest schema {version[:40]}, this program reads {SCHEMA}.",
            "Rebuild the engine with this version of dsv2-compile, or use the version that built it.",
        )
    found = list(strictjson.problems(raw, schema(), schema()))
    manifest = None if found else _build(raw)
    found += [] if manifest is None else _inconsistencies(manifest)
    if manifest is None or found:
        raise IntegrityError(f"{FILE_NAME} is malformed: {len(found)} problems.", COPY_AGAIN, found[:20])
    return manifest


def _build(raw: dict[str, Any]) -> Manifest:
    def tensors(entries: dict[str, Any]) -> dict[str, TensorEntry]:
        return {k: TensorEntry(v["dtype"], tuple(v["shape"])) for k, v in entries.items()}

    fields = {k: v for k, v in raw.items() if k not in ("schema", "sha256")}
    fields["model"] = ModelConfig.from_json(raw["model"])
    fields["symbols"] = {k: tuple(v) for k, v in raw["symbols"].items()}
    fields["programs"] = {
        k: ProgramEntry(**{**v, "inputs": tensors(v["inputs"]), "outputs": tensors(v["outputs"])})
        for k, v in raw["programs"].items()
    }
    fields["passes"] = tuple(raw["passes"])
    fields["tuning"] = tuple(raw["tuning"])
    fields["weights"] = {k: Placement(**{**v, "shape": tuple(v["shape"])}) for k, v in raw["weights"].items()}
    fields["files"] = {k: FileEntry(**v) for k, v in raw["files"].items()}
    fields["source"] = SourceEntry(**raw["source"])
    return Manifest(**fields)


def _inconsistencies(m: Manifest) -> list[str]:
    found = [f"symbols.{k}: {lo} is above {hi}" for k, (lo, hi) in m.symbols.items() if lo > hi]
    found += [f"programs.{k}: {p.file} is not in files" for k, p in m.programs.items() if p.file not in m.files]
    if m.max_seq_len > m.model.max_position_embeddings:
        found.append(f"max_seq_len: {m.max_seq_len} is above the model's {m.model.max_position_embeddings}")
    for name, w in m.weights.items():
        if w.file not in m.files:
            found.append(f"weights.{name}: {w.file} is not in files")
        elif w.offset + w.nbytes > m.files[w.file].bytes:
            found.append(f"weights.{name}: ends at byte {w.offset + w.nbytes} of {m.files[w.file].bytes}")
        if not w.consistent:
            found.append(f"weights.{name}: {w.nbytes} bytes are not {w.dtype}{list(w.shape)}")
    return found + _path_clashes(m.files)


def _path_clashes(files: dict[str, FileEntry]) -> list[str]:
    """Paths that are one file where case does not count, that are also a directory, or the manifest's own."""
    folded: dict[str, str] = {FILE_NAME: FILE_NAME}
    found = []
    for path in files:
        other = folded.setdefault(path.casefold(), path)
        if other is not path:
            found.append(f"files.{path}: clashes with {other}")
    for path in files:
        parts = path.casefold().split("/")
        found += [
            f"files.{path}: {up} is a file" for i in range(1, len(parts)) if (up := "/".join(parts[:i])) in folded
        ]
    return found

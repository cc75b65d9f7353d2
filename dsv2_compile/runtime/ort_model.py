"""An ONNX Runtime engine, loaded: a session of ONNX Runtime for each phase."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsv2_compile.engine.manifest import Manifest
from dsv2_compile.errors import UsageError
from dsv2_compile.runtime.contiguous import ContiguousStore
from dsv2_compile.runtime.ort import Program, require_compatible

if TYPE_CHECKING:
    from dsv2_compile.runtime.engine import Engine

__all__ = ["OrtModel", "load", "require_compatible"]


class OrtModel:
    def __init__(self, programs: dict[str, Program]) -> None:
        self.programs = programs

    def pages(self) -> None:
        return None

    def store(self, engine: Engine, slots: int, max_tokens: int) -> ContiguousStore:
        return ContiguousStore(engine, slots, max_tokens)

    def close(self) -> None:
        self.programs = {}


def load(root: Path, manifest: Manifest, threads: int, cache_tokens: int | None) -> OrtModel:
    if cache_tokens is not None:
        raise UsageError("cache_tokens has no effect for this engine.", "Leave it out: its sessions own their cache.")
    return OrtModel(
        {p: Program(root / entry.file, entry, manifest.model, threads) for p, entry in manifest.programs.items()}
    )

"""How the engines of each backend are loaded. A backend's packages are imported when one of its engines is."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from dsv2_compile.engine.manifest import Manifest
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.runtime.session import Store

if TYPE_CHECKING:
    from dsv2_compile.runtime.engine import Engine

MODULES = {"onnxruntime": "dsv2_compile.runtime.ort_model", "cuda": "dsv2_compile.runtime.native.model"}


@dataclass(frozen=True)
class Pages:
    """The KV cache that all sessions of an engine share: ``count`` pages of ``size`` positions."""

    size: int
    count: int
    free: int


class Loaded(Protocol):
    """What an engine needs of its backend."""

    def pages(self) -> Pages | None:
        """None where each session has a cache of its own."""

    def store(self, engine: Engine, slots: int, max_tokens: int) -> Store:
        """The cache of a new session."""

    def close(self) -> None:
        """Give everything back; harmless the second time."""


class Loader(Protocol):
    """A module with these functions."""

    def require_compatible(self, manifest: Manifest) -> None:
        """IncompatibleError unless this process can run the engine. Reads no file: answers at once."""

    def load(self, root: Path, manifest: Manifest, threads: int, cache_tokens: int | None) -> Loaded:
        """Load an engine whose files have been checked. UsageError for an argument without effect."""


def loader(manifest: Manifest) -> Loader:
    if manifest.backend not in MODULES:
        raise IncompatibleError(
            f"The engine is for backend {manifest.backend}, target {manifest.target}; this runtime has "
            f"{', '.join(MODULES)}.",
            "Rebuild it with dsv2-compile build --cpu, or load it with the runtime of its backend.",
        )
    return cast(Loader, importlib.import_module(MODULES[manifest.backend]))

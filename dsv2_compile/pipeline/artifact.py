"""What a backend makes of a model: an engine but for the bytes of its weights and its proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.compiler import Compiled
from dsv2_compile.config import ModelConfig
from dsv2_compile.engine.manifest import Manifest, ProgramEntry
from dsv2_compile.engine.placement import Placement
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.progress import Progress
from dsv2_compile.request import BuildRequest
from dsv2_compile.verify import Report
from dsv2_compile.weights import Recipe


@dataclass(frozen=True)
class Artifact:
    """``recipes``: the weights that its programs read, stored in ``dtype``. ``files(placement)``: the backend's own
    files, once it is known where each weight lies. ``tools``: distributions that shaped them. ``nbytes``: about how
    large they are. ``warnings``: what the user should know of them. ``tuning``: configurations of kernels, and where
    each is from."""

    backend: str
    target: str
    dtype: torch.dtype
    compiled: Compiled
    recipes: dict[str, Recipe]
    entries: dict[str, ProgramEntry]
    files: Callable[[Mapping[str, Placement]], dict[str, bytes]]
    tools: tuple[str, ...]
    nbytes: int
    warnings: tuple[str, ...] = field(default=())
    tuning: tuple[dict[str, Any], ...] = field(default=())


class Backend(Protocol):
    """A module with these functions."""

    def reads(self, request: BuildRequest) -> Sequence[Path]:
        """Files besides the checkpoint that decide what is made."""

    def make(self, config: ModelConfig, request: BuildRequest, progress: Progress) -> Artifact:
        """Compile a model of ``config`` for the request's target."""

    def verify(
        self,
        writer: EngineWriter,
        manifest: Manifest,
        checkpoint: Checkpoint,
        request: BuildRequest,
        progress: Progress,
    ) -> Report:
        """Check the staged engine against the eager model; golden data are added to it."""

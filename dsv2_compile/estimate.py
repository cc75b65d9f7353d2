"""What a build will need, before it starts: bytes on disk, bytes of memory, seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import ResourceError
from dsv2_compile.verify import plan as plans
from dsv2_compile.weights import Concat, Recipe, Stack

if TYPE_CHECKING:
    from dsv2_compile.checkpoint import Checkpoint

BASE_MEMORY = 700 << 20
"""Python, torch, ONNX Runtime and the graphs of both programs, bytes (artifacts/bench/build.json)."""
BASE_SECONDS = 15.0
WRITE_RATE = 148e6
"""Engine bytes per second: read, converted, written, hashed, synced and checked, on two cores (the three builds of
artifacts/bench/build.json, 5 to 18 GB, which this gives within 8 %)."""


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes. ``peak_memory_bytes``: memory the process itself holds, file pages not counted."""

    weights_bytes: int
    disk_bytes: int
    largest_weight_bytes: int
    peak_memory_bytes: int
    seconds: float


def estimate(checkpoint: Checkpoint, recipes: Mapping[str, Recipe], files_bytes: int, dtype: torch.dtype) -> Estimate:
    """For an engine whose weights are ``recipes``, in ``dtype``; equal recipes are stored once. ``files_bytes``: of the
    backend's own files."""
    stored = set(recipes.values())
    weights = sum(_nbytes(r, dtype) for r in stored)
    aux = sum(path.stat().st_size for path in checkpoint.aux_files)
    return Estimate(
        weights_bytes=weights,
        disk_bytes=weights + files_bytes + aux + _golden_bytes(checkpoint.config),
        largest_weight_bytes=max(_nbytes(r, dtype) for r in stored),
        peak_memory_bytes=BASE_MEMORY + 2 * max(_block(r, dtype) for r in stored),
        seconds=BASE_SECONDS + weights / WRITE_RATE,
    )


def require_memory(needs: Estimate) -> None:
    """ResourceError if the machine cannot have that much memory now."""
    free = available_memory()
    if free is not None and needs.peak_memory_bytes > free:
        raise ResourceError(
            f"The build needs about {needs.peak_memory_bytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free.",
            "Close other programs or build on a machine with more memory; --dry-run shows the need.",
        )


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that a process can still get without swapping, by the kernel's own estimate; None if unknown."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None


def _nbytes(recipe: Recipe, dtype: torch.dtype) -> int:
    return math.prod(recipe.shape) * recipe.stored_dtype(dtype).itemsize


def _block(recipe: Recipe, dtype: torch.dtype) -> int:
    """Bytes of the largest piece the writer holds: a part of a stack, or a whole tensor."""
    streamed = isinstance(recipe, Stack) or (isinstance(recipe, Concat) and recipe.dim == 0)
    parts: Iterable[Recipe] = getattr(recipe, "parts", ())
    return max(_block(p, dtype) for p in parts) if streamed else _nbytes(recipe, dtype)


def _golden_bytes(config: ModelConfig) -> int:
    """Rows of every position and logits of most, by the oracle in fp64."""
    positions = plans.SEQUENCES * (plans.PROMPT + plans.STEPS)
    return positions * 8 * (config.num_hidden_layers * config.cache_dim + config.vocab_size)

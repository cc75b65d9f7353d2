"""Importing this registers every kernel."""

from __future__ import annotations

from dsv2_compile.kernels.gpu import (
    cache,
    dispatch,
    embedding,
    gate,
    linear,
    mla_paged,
    mla_prefill,
    mla_split,
    moe,
    norm,
    sampling,
)

__all__ = [
    "cache",
    "dispatch",
    "embedding",
    "gate",
    "linear",
    "mla_paged",
    "mla_prefill",
    "mla_split",
    "moe",
    "norm",
    "sampling",
]

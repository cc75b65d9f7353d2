"""Cache rows between float32 on the host and the dtype of a plan, and which of them are neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """The bits of the nearest bf16, of two equally near the even one; NaN stays NaN, beyond the largest is infinity."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_fp16(values: Floats) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


TO_DEVICE: dict[str, Callable[[Floats], NDArray[Any]]] = {
    "bf16": to_bf16,
    "fp16": _to_fp16,
    "fp32": lambda v: np.ascontiguousarray(v, np.float32),
}
FROM_DEVICE: dict[str, Callable[[NDArray[Any]], Floats]] = {
    "bf16": from_bf16,
    "fp16": lambda v: v.astype(np.float32),
    "fp32": lambda v: v,
}


def runs(at: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Stretches of consecutive rows: index of the first in ``at``, the row itself, how many."""
    cuts = [0, *(np.flatnonzero(np.diff(at) != 1) + 1).tolist(), len(at)]
    for start, stop in itertools.pairwise(cuts):
        if stop > start:
            yield start, int(at[start]), stop - start

"""The KV cache of one session on the CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.errors import ResourceError

GRANULE = 256
"""Rows of several slots grow to a multiple of this, with an eighth to spare."""


class Cache:
    """Per layer one float32 array [slots, capacity, width]; consecutive slots are bound without a copy.

    The programs read [n, context, width] contiguously. One slot can be bound at exactly its past
    length, so a cache of one slot reserves ``max_tokens`` at once: untouched pages cost nothing.
    Several slots can only be bound at the full capacity, and attention works through all of it; so
    there the capacity grows with the longest sequence. Rows at or after a sequence's length are
    masked by the program and need no clearing, but must be finite (0 * NaN is NaN): memory starts
    at zero. ResourceError if it cannot be had; the contents are then unchanged.
    """

    def __init__(self, layers: int, slots: int, max_tokens: int, width: int) -> None:
        self._layers, self._slots, self._max_tokens, self._width = layers, slots, max_tokens, width
        self.clear()

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self.capacity = 0
        self._arrays: list[NDArray[np.float32]] = []
        self._reserve(self._max_tokens if self._slots == 1 else 0)

    def context(self, past: NDArray[np.int64]) -> int:
        """Positions that a call over len(past) consecutive slots binds."""
        longest = int(past.max())
        return longest if len(past) == 1 or longest == 0 else self.capacity

    def views(self, first: int, past: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Per layer the cached rows [n, context, width] of slots first..first+n-1, past [n]; no copy."""
        context = self.context(past)
        return [a[first : first + len(past), :context] for a in self._arrays]

    def store(self, first: int, past: NDArray[np.int64], lengths: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Append the first lengths[b] of rows [layers, n, S, width] to slot first+b at position past[b]."""
        need = int((past + lengths).max())
        if need > self.capacity:
            self._reserve(min(-(-(need + need // 8) // GRANULE) * GRANULE, self._max_tokens))
        for array, new in zip(self._arrays, rows, strict=True):
            for b, (start, count) in enumerate(zip(past.tolist(), lengths.tolist(), strict=True)):
                array[first + b, start : start + count] = new[b, :count]

    def _reserve(self, capacity: int) -> None:
        shape = (self._slots, capacity, self._width)
        try:
            grown = [np.zeros(shape, np.float32) for _ in range(self._layers)]
        except MemoryError:
            gigabytes = self._layers * np.prod(shape, dtype=float) * 4 / 1e9
            raise ResourceError(
                f"No memory for a KV cache of {self._slots} x {capacity} tokens ({gigabytes:.2f} GB).",
                "Open the session with a smaller max_batch or max_tokens.",
            ) from None
        for i, old in enumerate(self._arrays):  # pages are touched and freed layer by layer
            grown[i][:, : self.capacity] = old
            self._arrays[i] = grown[i]
        self._arrays = grown
        self.capacity = capacity

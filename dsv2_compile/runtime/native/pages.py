"""Which pages of the KV cache belong to which sequence."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.errors import ResourceError
from dsv2_compile.plan.pack import cache_rows


class PagePool:
    """``count`` pages of ``size`` positions, for all sessions of an engine. What was given back last goes out first."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._lock = threading.Lock()
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """ResourceError if there are fewer: none is taken."""
        with self._lock:
            if count > self.free:
                raise ResourceError(
                    f"The KV cache has {self.free} free pages of {self.size} tokens, {count} are needed.",
                    "Free sequences, shorten the input, or load the engine with a larger cache_tokens.",
                )
            cut = self.free - count
            taken, self._free = self._free[cut:][::-1], self._free[:cut]
            return taken

    def give(self, pages: Sequence[int]) -> None:
        with self._lock:
            self._free.extend(reversed(pages))


class PageTables:
    """The pages of ``slots`` sequences, in order: one row of ``tables`` int32 [slots, width] each."""

    def __init__(self, pool: PagePool, slots: int, width: int) -> None:
        self.pool, self.tables = pool, np.zeros((slots, width), np.int32)
        self._held = [0] * slots

    def reserve(self, slots: Sequence[int], positions: Sequence[int]) -> None:
        """Give each slot the pages for so many positions in all. ResourceError if there are too few: none is given."""
        more = [max(self._pages(n) - self._held[s], 0) for s, n in zip(slots, positions, strict=True)]
        taken = self.pool.take(sum(more))
        for slot, new in zip(slots, more, strict=True):
            start = self._held[slot]
            self.tables[slot, start : start + new], taken = taken[:new], taken[new:]
            self._held[slot] += new

    def release(self, slots: Sequence[int], keep: Sequence[int] | None = None) -> None:
        """Give the pages of ``slots`` back, but for those of their first ``keep`` positions (none)."""
        for slot, positions in zip(slots, keep or [0] * len(slots), strict=True):
            left = min(self._pages(positions), self._held[slot])
            self.pool.give(self.tables[slot, left : self._held[slot]].tolist())
            self._held[slot] = left

    def rows(self, slot: int, count: int) -> NDArray[np.int64]:
        """Rows of the cache that hold the first ``count`` positions of ``slot``."""
        return cache_rows(self.tables[slot], np.arange(count), self.pool.size)

    def _pages(self, positions: int) -> int:
        return -(-positions // self.pool.size)

"""Which pages of the KV cache belong to which sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.errors import ResourceError


class Pages:
    """``count`` pages of ``size`` positions, handed to ``slots`` sequences; a sequence has at most ``width`` pages.

    A page table row holds the pages of a sequence in order. Pages given back last are handed out first.
    """

    def __init__(self, count: int, size: int, slots: int, width: int) -> None:
        self.count, self.size = count, size
        self.tables = np.zeros((slots, width), np.int32)
        self._held = [0] * slots
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def reserve(self, slots: Sequence[int], positions: Sequence[int]) -> None:
        """Give each slot the pages for so many positions in all. ResourceError if there are too few: none is given."""
        more = [max(-(-n // self.size) - self._held[s], 0) for s, n in zip(slots, positions, strict=True)]
        if sum(more) > self.free:
            raise ResourceError(
                f"The KV cache has {self.free} free pages of {self.size} tokens, {sum(more)} are needed.",
                "Free sequences, shorten the input, or open the session with room for more.",
            )
        for slot, new in zip(slots, more, strict=True):
            for _ in range(new):
                self.tables[slot, self._held[slot]] = self._free.pop()
                self._held[slot] += 1

    def release(self, slots: Sequence[int], keep: Sequence[int] | None = None) -> None:
        """Take the pages of ``slots`` back, but for those of their first ``keep`` positions (none)."""
        for slot, positions in zip(slots, keep or [0] * len(slots), strict=True):
            left = -(-positions // self.size)
            self._free.extend(self.tables[slot, left : self._held[slot]][::-1].tolist())
            self._held[slot] = min(left, self._held[slot])

    def held(self, slot: int) -> NDArray[np.int32]:
        """The pages of ``slot``, in order."""
        return self.tables[slot, : self._held[slot]].copy()
